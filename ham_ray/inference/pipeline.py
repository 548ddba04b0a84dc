"""Prediction over Ray: actors that hold the models, one a node, read, decode and compute chunks of images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tensorflow as tf

from ham_ray import pool
from ham_ray.console import progress
from ham_ray.data import pictures
from ham_ray.data.gallery import Gallery, Stretch, TableGallery
from ham_ray.data.images import Images
from ham_ray.data.quarantine import Finding
from ham_ray.inference import saved
from ham_ray.progress import step
from ham_ray.training.augment import view
from ham_ray.training.step import PREDICT_BATCH, predict

CHUNK_BYTES, CHUNK_IMAGES = 64 << 20, 256  # decoded; below what Ray Data would split a block at
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("file", pa.string()),
        pa.field("reason", pa.string()),  # empty: the image was predicted
        pa.field("detail", pa.string()),
        pa.field("raw", pa.list_(pa.float32())),  # 7 probabilities of each ensemble, one after the other
    ]
)


@dataclass(frozen=True)
class InferenceConfig:
    """The models and the settings with which images are predicted.

    ensembles: each from the path of a saved model to its share in the mean, as in `saved.Saved.members`.
    sizes: of the images that each ensemble takes, in pixels.
    views: how many of each image's eight symmetries are averaged; the first is the image itself.
    precision: "float32", or "bfloat16" for the convolutions.
    batch_size: images a forward pass.
    """

    ensembles: tuple[dict[str, float], ...]
    sizes: tuple[int, ...]
    views: int = 1
    precision: str = "float32"
    batch_size: int = PREDICT_BATCH

    @property
    def pixels(self) -> tuple[int, ...]:
        """The sizes, each once; of models of one size that size alone."""
        return tuple(sorted(set(self.sizes)))


def predict_rows(model: str, images: Images, rows: pd.DataFrame, views: int = 1) -> np.ndarray:
    """Predict probabilities float32[n, K] of `rows` by a saved model: means over the first `views` of eight symmetries.

    Args:
        model: its path or URI.
        rows: a stretch of `images.fold(…)`, as `images.read` takes it.
    """
    return predict_table(InferenceConfig(({model: 1.0},), (images.size,), views), images, rows)


def predict_table(config: InferenceConfig, images: Images, rows: pd.DataFrame) -> np.ndarray:
    """Predict `rows` as `predict_rows` does, by several ensembles: float32[n, ensembles × K], one beside the other."""
    gallery = TableGallery(replace(images, rows=rows))
    result: dict[str, list[float]] = {}
    with step("prediction", f"{len(rows):,} images in {config.views} view(s)"), progress("prediction") as advance:
        for _, table in predicted(gallery, config, range(len(chunks(gallery, images.size)))):
            result |= dict(zip(table["image_id"].to_pylist(), table["raw"].to_pylist(), strict=True))
            advance(len(result), len(rows))
    return np.array([result[image_id] for image_id in rows["image_id"]], np.float32)


def chunks(gallery: Gallery, size: int) -> list[slice]:
    """Cut a gallery's rows into the stretches that are decoded together, each of at most `CHUNK_BYTES` or one image."""
    step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (size * size * 3)))
    return [slice(start, start + step) for start in range(0, len(gallery.rows), step)]


def predicted(gallery: Gallery, config: InferenceConfig, numbers: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
    """Predict the chunks of these numbers; yield each number with its table of `SCHEMA`, as they end."""
    galleries, stretches = {size: gallery.at(size) for size in config.pixels}, chunks(gallery, max(config.pixels))
    work = [
        _Chunk(number, {size: one.stretch(stretches[number]) for size, one in galleries.items()}) for number in numbers
    ]
    for chunk, table in pool.mapped(partial(_Predictor, config), work, "prediction"):
        yield chunk.number, table


@dataclass(frozen=True, eq=False)  # hashed as the object that it is, whatever it holds
class _Chunk:
    """The images that are decoded together: all of the gallery that is sent to an actor, so that none gets it whole."""

    number: int
    images: dict[int, Stretch]  # by their size


class _Predictor:
    """An actor's models, loaded once. Several threads decode chunks, one at a time computes."""

    def __init__(self, config: InferenceConfig) -> None:
        self.strict = pictures.strict_headers()
        self.strict.__enter__()  # for good: threads that come and go would take it from each other
        self.config, self.computing = config, threading.Lock()
        self.ensembles = [
            [(forward(saved.load(uri, config.precision)), share) for uri, share in members.items()]
            for members in config.ensembles
        ]

    def __call__(self, chunk: _Chunk) -> pa.Table:
        """Predict a chunk as a table of `SCHEMA`; images that cannot be read have a reason and no probabilities."""
        loaded = {size: images.load() for size, images in chunk.images.items()}
        first = next(iter(loaded.values()))  # what can be read can be read at any size
        good, bad = first.image_ids, first.findings
        columns = {name: [""] * len(good) + [getattr(one, name) for one in bad] for name in Finding._fields}
        columns["image_id"][: len(good)] = good
        with self.computing:
            raw = self._predicted({size: images.pixels for size, images in loaded.items()})
        return pa.table({**columns, "raw": [*raw, *[None] * len(bad)]}, schema=SCHEMA)

    def _predicted(self, pixels: dict[int, np.ndarray]) -> np.ndarray:
        views = {size: [view(one, index) for index in range(self.config.views)] for size, one in pixels.items()}
        each = zip(self.ensembles, self.config.sizes, strict=True)
        return np.concatenate([self._mean(members, views[size]) for members, size in each], axis=1)

    def _mean(self, members: list[tuple[Any, float]], pictures: list[np.ndarray]) -> np.ndarray:
        weights = [(model, picture, share / len(pictures)) for model, share in members for picture in pictures]
        each = [weight * predict(model, picture, self.config.batch_size) for model, picture, weight in weights]
        return np.sum(each, axis=0)


def forward(model: Any) -> Callable[[np.ndarray], tf.Tensor]:
    """Compile the model's inference: uint8[B, S, S, 3] to probabilities float32[B, K]."""
    return tf.function(lambda pixels: model(pixels, training=False), autograph=False)
