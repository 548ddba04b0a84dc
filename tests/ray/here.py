"""The epoch loop in this process, to compare with what Ray's processes give."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import tensorflow as tf

from ham_ray.data.images import Images, read_pixels
from ham_ray.models.network import Network, build
from ham_ray.models.weights import RANDOM
from ham_ray.recipe import Recipe
from ham_ray.training import input_pipeline, loop
from ham_ray.training.checkpoints import Checkpoints
from ham_ray.training.step import Replica, predict


class Trained(NamedTuple):
    """HISTORY, the network of the best epoch, and probabilities by split."""

    history: pd.DataFrame
    network: Network
    probabilities: dict[str, np.ndarray]


def train_here(recipe: Recipe, images: Images, folder: Path, tables: dict[str, str] | None = None) -> Trained:
    """Train in this process, without Ray, from images or from tables of activations."""
    rows = input_pipeline.split_rows(images, recipe)
    labels = {name: frame["label"].to_numpy(np.int32) for name, frame in rows.items()}
    pixels = {name: read_pixels(images, frame) for name, frame in rows.items()}

    def shard(name: str) -> input_pipeline.Shard:
        return input_pipeline.Shard(pixels[name], labels[name])

    network = build(recipe, images.size, RANDOM, 7)
    task = loop.worker_data(recipe, labels, 7, tables, lambda: (shard("training"), shard("validation")))
    replica, told = Replica(tf.distribute.get_strategy()), Checkpoints(str(folder))
    progress = loop.train(recipe, network, task, replica, told, print)
    classifier = network.classifier()
    forward = tf.function(lambda images: classifier(images, training=False))
    found = {name: predict(forward, pixels[name]) for name in ("validation", "test")}
    return Trained(pd.DataFrame(progress.history), network, found)
