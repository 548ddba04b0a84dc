"""The training step and prediction, compiled, for one replica and for many.

One worker runs them under TensorFlow's default strategy, several under MultiWorkerMirroredStrategy: the step and the
random numbers are the same, so the losses are too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from ham_ray.data.augment import DRAWS, augment, draw
from ham_ray.diagnoses import CODES
from ham_ray.models.families import Network
from ham_ray.models.losses import weighted_cross_entropy
from ham_ray.recipe import Recipe
from ham_ray.training.schedule import Phase

PREDICT_BATCH = 128


@dataclass(frozen=True)
class Replica:
    """This worker's place among all, and the strategy that joins them."""

    strategy: tf.distribute.Strategy
    rank: int = 0
    workers: int = 1

    def gather(self, local: np.ndarray) -> np.ndarray:
        """The arrays of all workers, joined along the first axis in the order of ranks."""
        return self.strategy.gather(tf.constant(local), axis=0).numpy() if self.workers > 1 else local


class Trainer:
    """A network with its optimizer and compiled steps, on one replica of a strategy."""

    def __init__(self, recipe: Recipe, network: Network, replica: Replica, class_weights: np.ndarray):
        self.recipe, self.network, self.replica = recipe, network, replica
        self.class_weights = tf.constant(class_weights)
        self.phase: Phase | None = None

    def enter(self, phase: Phase) -> None:
        """Start a phase: its variables, a fresh optimizer, a step compiled for them."""
        self.phase = phase
        head_only = phase.name == "head" or not self.network.body.trainable_variables
        self.variables = (self.network.head if head_only else self.network).trainable_variables
        with self.replica.strategy.scope():
            self.optimizer = keras.optimizers.AdamW(phase.peak, weight_decay=self.recipe.weight_decay)
            self.optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
            self.optimizer.build(self.variables)
        trains_statistics = self.network.trains_statistics and not head_only
        self.step = tf.function(lambda x, y, step: self._global_step(x, y, step, trains_statistics))
        self.forward = tf.function(self._forward)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities float32[n, 7] of this replica's images."""
        return predict(self.forward, pixels)

    def _forward(self, images: tf.Tensor) -> tf.Tensor:
        return self.replica.strategy.run(lambda x: tf.nn.softmax(self.network.logits(x)), (images,))

    def _global_step(self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor, statistics: bool) -> tf.Tensor:
        strategy = self.replica.strategy
        losses = strategy.run(self._replica_step, (images, labels, step, statistics))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _replica_step(self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor, statistics: bool) -> tf.Tensor:
        recipe, network = self.recipe, self.network
        images = augment(images, self._draw(step, DRAWS, stream=0), recipe.augmentation)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in self.variables])
            features = network.body(images, training=statistics)
            logits = network.head(self._drop(features, step), training=True)
            loss = weighted_cross_entropy(logits, labels, self.class_weights, recipe.label_smoothing, recipe.batch_size)
        self.optimizer.apply(tape.gradient(loss, [v.value for v in self.variables]), self.variables)
        return loss

    def _drop(self, features: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Dropout by the image's place in the global batch; a Dropout layer would drop others on other workers."""
        rate = self.recipe.dropout
        if not rate:
            return features
        kept = self._draw(step, features.shape[-1], stream=1) >= rate
        return tf.where(kept, features / (1.0 - rate), 0.0)

    def _draw(self, step: tf.Tensor, count: int, stream: int) -> tf.Tensor:
        """This replica's rows of the random numbers of the global batch."""
        share = self.recipe.batch_size // self.replica.workers
        everyone = draw(self.recipe.seed, step, self.recipe.batch_size, count, stream)
        return everyone[self.replica.rank * share : (self.replica.rank + 1) * share]


def predict(forward: Callable[[np.ndarray], tf.Tensor], pixels: np.ndarray) -> np.ndarray:
    """Probabilities float32[n, 7]; the last batch is padded, so that one compiled shape serves all."""
    probabilities = []
    for start in range(0, len(pixels), PREDICT_BATCH):
        batch = pixels[start : start + PREDICT_BATCH]
        padded = np.pad(batch, [(0, PREDICT_BATCH - len(batch)), (0, 0), (0, 0), (0, 0)])
        probabilities.append(np.asarray(forward(padded))[: len(batch)])
    return np.concatenate(probabilities) if probabilities else np.empty((0, len(CODES)), np.float32)
