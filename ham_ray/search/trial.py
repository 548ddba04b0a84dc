"""A trial in a warm process: TensorFlow stays imported, data and activations mapped, compiled steps in use.

Trials whose recipes differ only in what a step takes as an argument (learning rate, class weights, dropout, label
smoothing, weight decay, length) share a network and its compiled steps.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import tensorflow as tf
from ray import tune

from ham_ray import storage
from ham_ray.cluster import configure_data
from ham_ray.errors import UserError
from ham_ray.models.network import build
from ham_ray.recipe import Recipe
from ham_ray.runs import CHECKPOINTS
from ham_ray.training import input_pipeline, loop
from ham_ray.training.activations import Cached
from ham_ray.training.callbacks import HistoryFile
from ham_ray.training.checkpoints import Checkpoints
from ham_ray.training.decoding import Decoder
from ham_ray.training.step import Replica, Trainer, compile_key
from ham_ray.training.trainable import check_batch

HISTORY = "history.json"
_SHAPES = 6  # networks kept: one of 24 million weights has some 400 MB with its optimizer's state


@dataclass(frozen=True)
class Shared:
    """What all trials of a search have in common. Arrays lie in Ray's object store, once on each node.

    pixels: of the splits that are kept decoded; others are streamed from where they are `stored`.
    tables: activations by `table_key`; recipes that are not in it take the plain path.
    """

    base: Recipe
    size: int
    classes: int
    weights: ray.ObjectRef
    pixels: dict[str, ray.ObjectRef]
    stored: ray.ObjectRef
    labels: dict[str, np.ndarray]
    tables: dict[str, dict[str, Cached]]
    place: str
    threads: int

    def recipe(self, values: dict[str, Any]) -> Recipe:
        """Return the recipe of a trial with these parameter values."""
        return self.base.changed(**values)

    def folder(self, number: int) -> str:
        """Return the path of a trial's folder."""
        return trial_folder(self.place, number)


def trial_folder(path: str, number: int) -> str:
    """Return the path of a trial's folder within the search at `path`."""
    return storage.join(path, f"trial-{number:04d}")


def scores(history: list[dict[str, Any]], recipe: Recipe) -> list[tuple[int, float]]:
    """Return pairs of epoch and validation score; no dict, which Tune would flatten."""
    return [(row["epoch"], row[f"validation_{recipe.select_by}"]) for row in history]


def table_key(recipe: Recipe) -> str:
    """Return the key of a recipe's table of activations: all that it depends on among what a search may vary."""
    return f"depth {recipe.model.unfreeze_depth}, {recipe.augmentation.name}"


class InProcessTrial(tune.Trainable):
    """A trial in one process: each step is one epoch.

    The result of a step has `scores`, `finished`, `failed` (a reason or nothing) and `seconds` of training.
    """

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]  # Tune passes it
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
        configure_data()
        tf.get_logger().setLevel("ERROR")
        tf.config.threading.set_intra_op_parallelism_threads(shared.threads)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        self.shared = shared
        self.trainers: OrderedDict[str, Trainer] = OrderedDict()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial in this process."""
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch; return an error that would only happen again as `failed`, so that nobody retries it."""
        try:
            training = self._training()
            if not training.finished:
                training.run_epoch()
        except (loop.NonFiniteLossError, UserError) as error:
            return {"failed": str(error), "finished": False, "scores": [], "seconds": 0.0, "done": True}
        progress = training.progress
        if training.finished:
            training.end()
        return {
            "failed": "",
            "finished": training.finished,
            "scores": scores(progress.history, self.shared.base),
            "seconds": sum(row["seconds"] for row in progress.history),
            "done": training.finished,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: the training writes its own checkpoints, which no interruption damages."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing: the training goes on from its own checkpoints."""

    def _begin(self, config: dict[str, Any]) -> None:
        self.number, self.values = config["trial"], config["values"]
        self.folder = self.shared.folder(self.number)
        self.training: loop.Training | None = None

    def _training(self) -> loop.Training:
        """Return the trial's training, made at its first step: a failure then is the trial's and not the process's."""
        if self.training is None:
            recipe = self.shared.recipe(self.values)
            data = _worker_data(recipe, self.shared)
            checkpoints = Checkpoints(storage.join(self.folder, CHECKPOINTS))
            trainer = self._trainer(recipe, data)
            callbacks = [HistoryFile(storage.join(self.folder, HISTORY))]
            self.training = loop.Training(trainer, data, checkpoints, lambda line: None, callbacks)
        return self.training

    def _trainer(self, recipe: Recipe, data: loop.WorkerData) -> Trainer:
        shape = compile_key(recipe)
        if shape in self.trainers:
            self.trainers.move_to_end(shape)
            self.trainers[shape].restart(recipe, data.counts)
            return self.trainers[shape]
        while len(self.trainers) >= _SHAPES:
            self.trainers.popitem(last=False)
        network = build(recipe, self.shared.size, ray.get(self.shared.weights), self.shared.classes)
        replica = Replica(tf.distribute.get_strategy())
        self.trainers[shape] = Trainer(recipe, network, replica, data.counts, data.cached)
        return self.trainers[shape]


def _worker_data(recipe: Recipe, shared: Shared) -> loop.WorkerData:
    """Make the data of a trial: from tables of activations, from images in the object store, or streamed ones."""
    check_batch(len(shared.labels["training"]), recipe.data.batch_size, workers=1)

    decoder = Decoder()

    def shard(name: str) -> input_pipeline.Shard:
        if name in shared.pixels:
            return input_pipeline.Shard(ray.get(shared.pixels[name]), shared.labels[name])
        images = input_pipeline.StreamedImages(ray.get(shared.stored)[name], decoder)
        return input_pipeline.Shard(images, shared.labels[name])

    tables = shared.tables.get(table_key(recipe))
    return loop.worker_data(
        recipe, shared.labels, shared.classes, tables, lambda: (shard("training"), shard("validation"))
    )
