"""Class weights and the training loss."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def class_weights(counts: np.ndarray, scale: float) -> np.ndarray:
    """`(N / (K · n_c)) ** scale` for each class, float32[K].

    scale 1 is scikit-learn's `compute_class_weight("balanced")`, 0 is none. K counts the classes that occur; a class
    without an image gets weight 0: no loss term asks for it.
    """
    present = counts > 0
    balanced = counts.sum() / (present.sum() * np.maximum(counts, 1))
    return np.where(present, balanced**scale, 0).astype(np.float32)


def weighted_cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, label_smoothing: float, batch_size: int
) -> tf.Tensor:
    """Sum of the weighted cross-entropies of `logits` float32[B, K] against `labels` int[B], over `batch_size`.

    `batch_size` is the global one, so that the sum over workers is the mean over the global batch.
    """
    classes = logits.shape[-1]
    targets = tf.one_hot(labels, classes) * (1.0 - label_smoothing) + label_smoothing / classes
    losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    return tf.reduce_sum(losses * tf.gather(weights, labels)) / batch_size
