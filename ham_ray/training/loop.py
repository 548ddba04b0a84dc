"""The epoch loop: the only one in the project, for one replica and for many.

One worker runs it under TensorFlow's default strategy, several under MultiWorkerMirroredStrategy: the step, the
batches and the random numbers are the same, so the losses are too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ham_ray.data.augment import DRAWS, augment, draw
from ham_ray.diagnoses import CODES
from ham_ray.evaluation import metrics
from ham_ray.models.families import Network
from ham_ray.models.losses import weighted_cross_entropy
from ham_ray.training.checkpoints import Checkpoint, Checkpoints
from ham_ray.training.recipe import Recipe

PREDICT_BATCH = 128


class NonFiniteLossError(Exception):
    """The loss became NaN or infinite: going on would train on garbage."""


@dataclass(frozen=True)
class Replica:
    """This worker's place among all, and the strategy that joins them."""

    strategy: tf.distribute.Strategy
    rank: int = 0
    workers: int = 1

    def gather(self, local: np.ndarray) -> np.ndarray:
        """The arrays of all workers, joined along the first axis in the order of ranks."""
        return self.strategy.gather(tf.constant(local), axis=0).numpy() if self.workers > 1 else local


@dataclass(frozen=True)
class Part:
    """Images in memory: uint8[n, size, size, 3] and labels int32[n]."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Task:
    """What a worker is given. `batches(epoch)` yields its share of each step as (uint8 images, int labels)."""

    batches: Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]
    steps: int
    validation: Part
    class_weights: np.ndarray


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with one set of trained variables, one optimizer and one learning-rate curve."""

    name: str
    first: int
    epochs: int
    peak: float


@dataclass
class Progress:
    """Where a training stands: whole epochs done, the best of them (counted from 1). JSON in checkpoints."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)


def phases(recipe: Recipe) -> list[Phase]:
    """The head alone first where the recipe says so, then all that it unfreezes."""
    rest = Phase("all", recipe.head_epochs, recipe.epochs - recipe.head_epochs, recipe.learning_rate)
    return [Phase("head", 0, recipe.head_epochs, recipe.head_learning_rate), rest] if recipe.head_epochs else [rest]


def learning_rate(peak: float, step: int, warmup: float, total: int) -> float:
    """Linear warm-up to `peak` over `warmup` steps, then half a cosine to zero at step `total`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


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


def train(
    recipe: Recipe,
    network: Network,
    task: Task,
    replica: Replica,
    checkpoints: Checkpoints,
    report: Callable[[dict[str, Any]], None],
    say: Callable[[str], None],
) -> Progress:
    """Train from the latest checkpoint (or from the start) to the end of the recipe, then restore the best epoch.

    Raises:
        NonFiniteLossError: the loss of a step is NaN or infinite.
        RuntimeError: the workers ended with different weights or BatchNorm statistics.
    """
    trainer = Trainer(recipe, network, replica, task.class_weights)
    truth = replica.gather(task.validation.labels)
    progress, best = _resume(trainer, checkpoints.latest(say))
    if progress.epoch:
        say(f"{recipe.family}: going on after epoch {progress.epoch}")
    while progress.epoch < recipe.epochs and not _stalled(recipe, progress):
        phase = _phase_at(recipe, progress.epoch)
        if trainer.phase != phase:
            trainer.enter(phase)
        row = _run_epoch(trainer, task, truth, progress.epoch, say)
        progress.epoch += 1
        row["best"] = row[f"validation_{recipe.select_by}"] > progress.best_score
        if row["best"]:
            progress.best_epoch, progress.best_score = row["epoch"], row[f"validation_{recipe.select_by}"]
            best = _arrays(network)
        progress.history.append(row)
        if replica.rank == 0:
            checkpoints.save(progress.epoch, _checkpoint(trainer, progress, best))
        report(row)
    _assign(network.learned_variables, best)
    _check_agreement(network, replica)
    return progress


def _run_epoch(
    trainer: Trainer, task: Task, truth: np.ndarray, epoch: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """One pass over the training shard and the validation shard: one row of HISTORY."""
    phase, recipe = trainer.phase, trainer.recipe
    assert phase is not None
    started, losses, told = time.monotonic(), [], time.monotonic()
    before, total = (epoch - phase.first) * task.steps, phase.epochs * task.steps
    for index, (images, labels) in enumerate(task.batches(epoch)):
        rate = learning_rate(phase.peak, before + index, recipe.warmup_epochs * task.steps, total)
        trainer.optimizer.learning_rate = rate
        losses.append(float(trainer.step(images, labels, tf.constant(epoch * task.steps + index))))
        if not math.isfinite(losses[-1]):
            raise NonFiniteLossError(
                f"loss is {losses[-1]} at epoch {epoch + 1}, step {index + 1}, learning rate {rate:.3g}"
            )
        if time.monotonic() - told > 20:
            told = time.monotonic()
            say(_pace(recipe, epoch, index + 1, task.steps, told - started))
    trained = time.monotonic() - started
    probabilities = trainer.replica.gather(trainer.predict(task.validation.pixels))
    if not np.isfinite(probabilities).all():
        raise NonFiniteLossError(f"validation predictions are not finite after epoch {epoch + 1}")
    return {
        "epoch": epoch + 1,
        "phase": phase.name,
        "train_loss": float(np.mean(losses)),
        "validation_loss": metrics.nll(truth, probabilities),
        "validation_accuracy": metrics.accuracy(truth, probabilities),
        "validation_macro_f1": metrics.macro_f1(truth, probabilities),
        "validation_balanced_accuracy": metrics.balanced_accuracy(truth, probabilities),
        "learning_rate": rate,
        "seconds": time.monotonic() - started,
        "images_per_second": task.steps * recipe.batch_size / trained,
    }


def _check_agreement(network: Network, replica: Replica) -> None:
    """All workers hold the same variables, up to rounding on unlike processors."""
    sums = np.array([[np.abs(values).sum(dtype=np.float64) for values in _arrays(network)]])
    everyone = replica.gather(sums)
    if not np.allclose(everyone, sums, rtol=1e-3, atol=1e-6):
        worst = network.learned_variables[int(np.abs(everyone - sums).max(axis=0).argmax())].path
        raise RuntimeError(f"the workers disagree on {worst}: their updates or statistics were not joined")


def _pace(recipe: Recipe, epoch: int, step: int, steps: int, seconds: float) -> str:
    pace, left = step * recipe.batch_size / seconds, (steps - step) / step * seconds
    return (
        f"{recipe.family} epoch {epoch + 1}/{recipe.epochs}: step {step}/{steps}, {pace:.0f} images/s, "
        f"{left:.0f} s left in it"
    )


def _phase_at(recipe: Recipe, epoch: int) -> Phase:
    return next(phase for phase in reversed(phases(recipe)) if epoch >= phase.first)


def _stalled(recipe: Recipe, progress: Progress) -> bool:
    """Early stopping; the head's own epochs do not count."""
    since = progress.epoch - max(progress.best_epoch, recipe.head_epochs)
    return 0 < recipe.patience <= since


def _resume(trainer: Trainer, checkpoint: Checkpoint | None) -> tuple[Progress, list[np.ndarray]]:
    if checkpoint is None:
        return Progress(), _arrays(trainer.network)
    progress = Progress(**checkpoint.facts)
    trainer.enter(_phase_at(trainer.recipe, progress.epoch - 1))
    _assign(trainer.network.learned_variables, _listed(checkpoint, "network"))
    _assign(trainer.optimizer.variables, _listed(checkpoint, "optimizer"))
    return progress, _listed(checkpoint, "best")


def _checkpoint(trainer: Trainer, progress: Progress, best: list[np.ndarray]) -> Checkpoint:
    groups = {
        "network": _arrays(trainer.network),
        "best": best,
        "optimizer": [v.numpy() for v in trainer.optimizer.variables],
    }
    arrays = {f"{group}-{i:04d}": array for group, values in groups.items() for i, array in enumerate(values)}
    return Checkpoint(arrays, dict(vars(progress)))


def _listed(checkpoint: Checkpoint, group: str) -> list[np.ndarray]:
    return [checkpoint.arrays[key] for key in sorted(checkpoint.arrays) if key.startswith(f"{group}-")]


def _arrays(network: Network) -> list[np.ndarray]:
    return [variable.numpy() for variable in network.learned_variables]


def _assign(variables: list[keras.Variable], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
