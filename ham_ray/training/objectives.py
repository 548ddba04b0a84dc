"""Losses by their name in a recipe: from logits and soft targets to a loss an image.

A loss is an entry of `OBJECTIVES`; its settings are fields of the recipe's section `loss`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import tensorflow as tf

from ham_ray.recipe import Loss


class Objective(Protocol):
    """A loss. Its constants reach the compiled step as tensors, so that other numbers need no other graph."""

    def constants(self, settings: Loss, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Make float32 arrays of the settings and of `counts`, the training images of each class, int[K].

        Their names and shapes must not depend on either.
        """

    def losses(self, logits: tf.Tensor, targets: tf.Tensor, constants: dict[str, tf.Tensor]) -> tf.Tensor:
        """Return the loss of each image, float32[B], from logits and soft targets float32[B, K], rows summing to 1."""


class CrossEntropy:
    """Cross-entropy with label smoothing, weighted by class."""

    def constants(self, settings: Loss, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Return `class_weights` float32[K] and `label_smoothing` float32."""
        weights = class_weights(counts, settings.class_weight_scale)
        return {"class_weights": weights, "label_smoothing": np.array(settings.label_smoothing, np.float32)}

    def losses(self, logits: tf.Tensor, targets: tf.Tensor, constants: dict[str, tf.Tensor]) -> tf.Tensor:
        """Smooth the targets as Keras's CategoricalCrossentropy does; weigh each image by its targets' classes."""
        smoothing, classes = constants["label_smoothing"], logits.shape[-1]
        smoothed = targets * (1.0 - smoothing) + smoothing / classes
        weights = tf.reduce_sum(targets * constants["class_weights"], axis=-1)
        return tf.nn.softmax_cross_entropy_with_logits(smoothed, logits) * weights


OBJECTIVES: dict[str, Objective] = {"cross_entropy": CrossEntropy()}


def class_weights(counts: np.ndarray, scale: float) -> np.ndarray:
    """Return `(N / (K · n_c)) ** scale` for each class, float32[K].

    scale 1 is scikit-learn's `compute_class_weight("balanced")`, 0 is none. K counts the classes that occur; a class
    without an image gets weight 0: no loss term asks for it.
    """
    present = counts > 0
    balanced = counts.sum() / (present.sum() * np.maximum(counts, 1))
    return np.where(present, balanced**scale, 0).astype(np.float32)
