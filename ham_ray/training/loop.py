"""The epoch loop, the only one in the project: resume, train, validate, keep the best, checkpoint, stop early."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from ham_ray.errors import UserError
from ham_ray.evaluation import metrics
from ham_ray.models.network import Network
from ham_ray.recipe import Recipe
from ham_ray.training import input_pipeline
from ham_ray.training.activations import Activations, Cached
from ham_ray.training.callbacks import Callback
from ham_ray.training.checkpoints import Checkpoint, Checkpoints
from ham_ray.training.input_pipeline import Batches, Shard
from ham_ray.training.sampler import WINDOW
from ham_ray.training.schedule import Phase, learning_rate, phase_at
from ham_ray.training.step import Replica, Trainer

SAVED_EVERY = 600.0  # seconds between two checkpoints in an epoch that is longer
SMALL = 16 << 10  # bytes of an image's activations up to which a call takes many steps: the features of a head
STEPS_A_CALL = 96  # an epoch of HAM10000; some 50 MiB of features, in four copies


class NonFiniteLossError(Exception):
    """The loss became NaN or infinite: going on would train on garbage."""


class WorkersDisagreeError(Exception):
    """The workers hold different variables or stand at different epochs: their parts were not joined."""


@dataclass(frozen=True)
class WorkerData:
    """What a worker is given. `batches(epoch, step)` yields its share of each step from that one on: (inputs, labels).

    The inputs are uint8 images, or with `cached` what the network's prefix gives for them. Without a `validation` part
    the last epoch counts as the best. `counts` are the training images of each class, int64[K]. Of small inputs a call
    of the trainer takes many steps.
    """

    batches: Batches
    steps: int
    validation: Shard | None
    counts: np.ndarray
    cached: bool = False
    steps_a_call: int = 1


def worker_data(
    recipe: Recipe,
    labels: dict[str, np.ndarray],
    classes: int,
    tables: dict[str, Cached] | None,
    images: Callable[[], tuple[Shard, Shard | None]],
    rank: int = 0,
    workers: int = 1,
    window: int = WINDOW,
) -> WorkerData:
    """Make the data of a worker: from tables of activations where there are any, else from images.

    `images` makes its shards of training and validation images. `labels` are of the whole splits, from 0 to
    `classes` - 1.
    """
    sampler = input_pipeline.make_sampler(recipe, len(labels["training"]), rank, workers, window)
    if tables:
        batches = input_pipeline.cached_batches(tables["training"], labels["training"], recipe, sampler)
        held_out = tables.get("validation")
        validation = input_pipeline.cached_shard(held_out, labels["validation"], rank, workers) if held_out else None
    else:
        training, validation = images()
        batches = input_pipeline.image_batches(training, sampler)
    counts = np.bincount(labels["training"], minlength=classes)
    small = tables is not None and Activations(tables["training"]).bytes_each <= SMALL
    calls = STEPS_A_CALL if small else 1
    return WorkerData(batches, sampler.steps, validation, counts, cached=bool(tables), steps_a_call=calls)


@dataclass
class Progress:
    """Where a training stands: whole epochs done, the best of them (counted from 1). JSON in checkpoints.

    losses: of the steps done of the epoch that it is in, weighted and unweighted; seconds: what they took.
    """

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -1.0
    stopped: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0


def train(
    recipe: Recipe,
    network: Network,
    data: WorkerData,
    replica: Replica,
    checkpoints: Checkpoints,
    say: Callable[[str], None],
    callbacks: Sequence[Callback] = (),
) -> Progress:
    """Train from the latest checkpoint (or from the start) to the end of the recipe, then restore the best epoch.

    Where one of the callbacks says that it may not go on, the training stops there.

    Raises:
        NonFiniteLossError: the loss of a step is NaN or infinite.
        WorkersDisagreeError: the workers started from different checkpoints, or ended with different variables.
    """
    trainer = Trainer(recipe, network, replica, data.counts, data.cached)
    training = Training(trainer, data, checkpoints, say, callbacks)
    while all([callback.may_go_on(training.progress.history) for callback in callbacks]):  # each of them is asked
        if training.finished:
            training.restore_best()
            training.end()
            return training.progress
        training.run_epoch()
    training.progress.stopped = True
    return training.progress


class Training:
    """A training that stands after its latest checkpoint and goes on epoch by epoch; raises as `train` does."""

    def __init__(
        self,
        trainer: Trainer,
        data: WorkerData,
        checkpoints: Checkpoints,
        say: Callable[[str], None],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.trainer, self.data, self.checkpoints, self.say, self.callbacks = trainer, data, checkpoints, say, callbacks
        self._truth = trainer.replica.gather(data.validation.labels) if data.validation else np.empty(0, np.int32)
        self.progress, self._best = _resume(trainer, checkpoints.latest(say))
        if len({*map(tuple, trainer.replica.gather(np.array([[self.progress.epoch, len(self.progress.losses)]])))}) > 1:
            raise WorkersDisagreeError("the workers see different checkpoints: is --out a folder that all nodes share?")
        if self.progress.epoch or self.progress.losses:
            step = f", step {len(self.progress.losses)} of the next" if self.progress.losses else ""
            say(f"going on after epoch {self.progress.epoch}{step}")
        for callback in callbacks:
            callback.on_start(self.progress.history)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or it stopped getting better."""
        recipe = self.trainer.recipe
        return self.progress.epoch >= recipe.epochs or _stalled(recipe, self.progress)

    def run_epoch(self) -> dict[str, Any]:
        """Train and validate one epoch and leave a checkpoint: one row of HISTORY."""
        trainer, progress, select_by = self.trainer, self.progress, self.trainer.recipe.select_by
        phase = phase_at(trainer.recipe, progress.epoch)
        if trainer.phase != phase:
            trainer.enter(phase)
        trained = self._train_epoch(phase)
        progress.epoch, progress.losses, progress.seconds = progress.epoch + 1, [], 0.0
        with trainer.averaged():
            held_out = self.data.validation
            row = {**trained, **(_validate(trainer, held_out, self._truth, trained) if held_out else {})}
            score = row.get(f"validation_{select_by}", row["epoch"])  # without validation the last is the best
            row["best"] = score > progress.best_score
            if row["best"]:
                progress.best_epoch, progress.best_score = row["epoch"], score
                self._best = _arrays(trainer.network)
        progress.history.append(row)
        self._save()
        for callback in self.callbacks:
            callback.on_epoch(row)
        return row

    def _train_epoch(self, phase: Phase) -> dict[str, Any]:
        """Train what is left of the epoch: the first half of a row of HISTORY."""
        trainer, recipe, progress, data = self.trainer, self.trainer.recipe, self.progress, self.data
        first, losses, epoch = len(progress.losses), progress.losses, progress.epoch
        before, total = (epoch - phase.first) * data.steps, phase.epochs * data.steps
        spoke = saved = time.monotonic()
        started = spoke - progress.seconds
        for inputs, labels in _calls(data.batches(epoch, first), data.steps_a_call):
            step, warmup = len(losses), recipe.optimizer.warmup_epochs * data.steps
            rates = [learning_rate(phase.peak, before + step + i, warmup, total) for i in range(len(labels))]
            losses += trainer.steps(inputs, labels, epoch * data.steps + step, rates).astype(float).tolist()
            _check_finite(losses, step, epoch, rates)
            progress.seconds = (now := time.monotonic()) - started
            if now - spoke > 20:
                spoke = now
                self.say(_pace(recipe, epoch, len(losses), data.steps, progress.seconds))
            if now - saved > SAVED_EVERY and len(losses) < data.steps:
                saved = now
                self._save()
        weighted, unweighted = np.mean(losses, axis=0).tolist()
        return {
            "epoch": epoch + 1,
            "phase": phase.name,
            "train_loss": weighted,
            "train_loss_unweighted": unweighted,
            "learning_rate": rates[-1],
            "seconds": progress.seconds,
            "images_per_second": data.steps * recipe.data.batch_size / progress.seconds,
        }

    def _save(self) -> None:
        if self.trainer.replica.rank == 0:
            checkpoint = _checkpoint(self.trainer, self.progress, self._best)
            self.checkpoints.save(self.progress.epoch, checkpoint, len(self.progress.losses))

    def end(self) -> None:
        """Let the callbacks know that all epochs are done."""
        for callback in self.callbacks:
            callback.on_end(self.progress.history)

    def restore_best(self) -> None:
        """Give the network the variables of its best epoch."""
        _assign(self.trainer.network.learned_variables, self._best)
        _check_agreement(self.trainer.network, self.trainer.replica)


def _calls(batches: Iterator[tuple[np.ndarray, np.ndarray]], steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stack the batches of so many steps."""
    while chosen := list(itertools.islice(batches, steps)):
        inputs, labels = zip(*chosen, strict=True)
        yield (inputs[0][None], labels[0][None]) if len(chosen) == 1 else (np.stack(inputs), np.stack(labels))


def _check_finite(losses: list[list[float]], first: int, epoch: int, rates: list[float]) -> None:
    """Check the losses of an epoch from a step on, which had these learning rates."""
    for step, (loss, _) in enumerate(losses[first:]):
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"loss is {loss} at epoch {epoch + 1}, step {first + step + 1}, learning rate {rates[step]:.3g}"
            )


def _validate(trainer: Trainer, held_out: Shard, truth: np.ndarray, trained: dict[str, Any]) -> dict[str, Any]:
    """One pass over the validation shard: the second half of a row, and the seconds of both."""
    started = time.monotonic()
    probabilities = trainer.replica.gather(trainer.predict(held_out.inputs))
    if not np.isfinite(probabilities).all():
        raise NonFiniteLossError(f"validation predictions are not finite after epoch {trained['epoch']}")
    return {
        "validation_loss": metrics.nll(truth, probabilities),
        "validation_accuracy": metrics.accuracy(truth, probabilities),
        "validation_macro_f1": metrics.macro_f1(truth, probabilities),
        "validation_balanced_accuracy": metrics.balanced_accuracy(truth, probabilities),
        "seconds": trained["seconds"] + time.monotonic() - started,
    }


def _check_agreement(network: Network, replica: Replica) -> None:
    """All workers hold the same variables, up to rounding on unlike processors."""
    sums = np.array([[np.abs(values).sum(dtype=np.float64) for values in _arrays(network)]])
    everyone = replica.gather(sums)
    if not np.allclose(everyone, sums, rtol=1e-3, atol=1e-6):
        worst = network.learned_variables[int(np.abs(everyone - sums).max(axis=0).argmax())].path
        raise WorkersDisagreeError(f"the workers disagree on {worst}: their updates or statistics were not joined")


def _pace(recipe: Recipe, epoch: int, step: int, steps: int, seconds: float) -> str:
    pace, left = step * recipe.data.batch_size / seconds, (steps - step) / step * seconds
    return f"epoch {epoch + 1}/{recipe.epochs}, step {step}/{steps}, {pace:.0f} images/s, {left:.0f} s left in it"


def _stalled(recipe: Recipe, progress: Progress) -> bool:
    """Early stopping; the head's own epochs do not count."""
    since = progress.epoch - max(progress.best_epoch, recipe.head_epochs)
    return 0 < recipe.patience <= since


def _resume(trainer: Trainer, checkpoint: Checkpoint | None) -> tuple[Progress, list[np.ndarray]]:
    if checkpoint is None:
        return Progress(), _arrays(trainer.network)
    if checkpoint.facts["recipe"] != trainer.recipe.record():
        raise UserError(
            "the latest checkpoint is of another recipe than the run it lies in; delete it or rename the run"
        )
    progress = Progress(**checkpoint.facts["progress"])
    trainer.enter(phase_at(trainer.recipe, progress.epoch - (not progress.losses)))  # that of the last step
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
    # No generator state: every random number is a function of the recipe's seed and the step.
    return Checkpoint(arrays, {"progress": vars(progress), "recipe": trainer.recipe.record()})


def _listed(checkpoint: Checkpoint, group: str) -> list[np.ndarray]:
    return [checkpoint.arrays[key] for key in sorted(checkpoint.arrays) if key.startswith(f"{group}-")]


def _arrays(network: Network) -> list[np.ndarray]:
    return [variable.numpy() for variable in network.learned_variables]


def _assign(variables: list[keras.Variable], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
