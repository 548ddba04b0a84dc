"""The peers of benchmarks/training.py and search.py: what one writes from Keras's guide, without this project."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from ham_ray.models.weights import Weights, load_backbone

STAGES = ("conv5", "conv4", "conv3", "conv2", "conv1")


def resnet50(size: int, weights: Weights, depth: int) -> keras.Model:
    """Logits of float images 0–255, with flips and rotations; the top `depth` residual stages are trained."""
    inputs = keras.Input((size, size, 3))
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(size, size, 3))
    load_backbone(base, weights)
    for layer in base.layers:
        layer.trainable = depth > 0 and layer.name.startswith(STAGES[:depth])
    x = layers.RandomRotation(0.5)(layers.RandomFlip()(inputs))
    x = base(keras.applications.resnet50.preprocess_input(x), training=False)
    return keras.Model(inputs, layers.Dense(7)(layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))))


def simple_cnn(size: int) -> keras.Model:
    """Three convolution blocks as in this project's family, and logits."""
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(layers.RandomRotation(0.5)(layers.RandomFlip()(inputs)))
    for filters in (32, 64, 128):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(inputs, layers.Dense(7)(layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))))


def dataset(pixels: np.ndarray, labels: np.ndarray, batch_size: int, shuffled: bool) -> Any:
    """tf.data over arrays in memory; labels as one-hot rows."""
    found = tf.data.Dataset.from_tensor_slices((pixels, np.eye(7, dtype=np.float32)[labels]))
    found = found.shuffle(len(labels)) if shuffled else found
    found = found.batch(batch_size, drop_remainder=shuffled)
    return found.map(lambda x, y: (tf.cast(x, tf.float32), y)).prefetch(tf.data.AUTOTUNE)
