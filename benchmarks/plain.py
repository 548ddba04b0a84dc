"""The peers of benchmarks/training.py and search.py: what one writes from Keras's guide, without this project."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from ham_ray.data.images import Images, read_pixels
from ham_ray.models.weights import Weights, load_backbone
from ham_ray.recipe import Recipe
from ham_ray.training import input_pipeline

STAGES = ("conv5", "conv4", "conv3", "conv2", "conv1")


def resnet50(size: int, weights: Weights, depth: int) -> keras.Model:
    """Build a ResNet50 from float images 0–255 to logits; its top `depth` residual stages are trained."""
    inputs = keras.Input((size, size, 3))
    base = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(size, size, 3))
    load_backbone(base, weights)
    for layer in base.layers:
        layer.trainable = depth > 0 and layer.name.startswith(STAGES[:depth])
    x = base(keras.applications.resnet50.preprocess_input(inputs), training=False)
    return keras.Model(inputs, layers.Dense(7)(layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))))


def simple_cnn(size: int) -> keras.Model:
    """Build three convolution blocks as in this project's family, and logits."""
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for filters in (32, 64, 128):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(inputs, layers.Dense(7)(layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))))


def compiled(model: keras.Model, learning_rate: float) -> keras.Model:
    """Compile a model with AdamW, cross-entropy and macro-F1."""
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    metric = keras.metrics.F1Score(average="macro", name="f1")
    model.compile(keras.optimizers.AdamW(learning_rate), loss=loss, metrics=[metric])
    return model


def splits(images: Images, recipe: Recipe) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read pixels uint8[n, size, size, 3] and labels int32[n] of training and validation into memory."""
    rows = input_pipeline.split_rows(images, recipe)
    return {
        name: (read_pixels(images, rows[name]), rows[name]["label"].to_numpy(np.int32))
        for name in ("training", "validation")
    }


def dataset(pixels: np.ndarray, labels: np.ndarray, batch_size: int, training: bool) -> Any:
    """Make a tf.data pipeline over arrays in memory, shuffled and augmented for `training`; labels as one-hot rows."""
    found = tf.data.Dataset.from_tensor_slices((pixels, np.eye(7, dtype=np.float32)[labels]))
    found = found.shuffle(len(labels)) if training else found

    def prepared(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(symmetries(x) if training else x, tf.float32), y

    batches = found.batch(batch_size, drop_remainder=training)
    return batches.map(prepared, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def symmetries(images: tf.Tensor) -> tf.Tensor:
    """Draw one of the eight symmetries of each image [B, S, S, 3]: RandomRotation interpolates, ours does not."""
    turned, upside, mirrored = tf.unstack(tf.random.uniform([3, tf.shape(images)[0], 1, 1, 1]) < 0.5)
    images = tf.where(turned, tf.transpose(images, [0, 2, 1, 3]), images)
    images = tf.where(upside, tf.reverse(images, [1]), images)
    return tf.where(mirrored, tf.reverse(images, [2]), images)
