"""Prediction over Ray Data: tasks read and decode chunks of images, actors that hold the models compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import ray.data
import tensorflow as tf

from ham_ray.cluster import actor_each_node
from ham_ray.console import progress
from ham_ray.data.augment import view
from ham_ray.data.gallery import Gallery, TableGallery
from ham_ray.data.images import Images
from ham_ray.diagnoses import CODES
from ham_ray.prediction import saved
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
class Way:
    """By what and how images are predicted.

    ensembles: each from the place of a saved model to its share in the mean, as in `saved.Saved.members`.
    views: how many of each image's eight symmetries are averaged; the first is the image itself.
    precision: "float32", or "bfloat16" for the convolutions.
    batch_size: images a forward pass.
    """

    ensembles: tuple[dict[str, float], ...]
    views: int = 1
    precision: str = "float32"
    batch_size: int = PREDICT_BATCH


def predict_rows(model: str, images: Images, rows: pd.DataFrame, views: int = 1) -> np.ndarray:
    """Probabilities float32[n, 7] of `rows` by a saved model, the mean over the first `views` of eight symmetries.

    Args:
        model: its path or URI.
        rows: a stretch of `images.fold(…)`, as `images.read` takes it.
    """
    gallery = TableGallery(replace(images, rows=rows))
    way = Way(({model: 1.0},), views)
    found: dict[str, list[float]] = {}
    with progress("prediction") as told:
        for _, table in predicted(gallery, way, range(len(chunks(gallery, images.size))), images.size):
            found |= dict(zip(table["image_id"].to_pylist(), table["raw"].to_pylist(), strict=True))
            told(len(found), len(rows))
    return np.array([found[image_id] for image_id in rows["image_id"]], np.float32)


def chunks(gallery: Gallery, size: int) -> list[slice]:
    """The stretches of a gallery's rows that are decoded together."""
    step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (size * size * 3)))
    return [slice(start, start + step) for start in range(0, len(gallery.rows), step)]


def predicted(gallery: Gallery, way: Way, numbers: Sequence[int], size: int) -> Iterator[tuple[int, pa.Table]]:
    """Chunks by their numbers and what is predicted for them, tables of `SCHEMA`, in the order in which they end."""
    if not len(numbers):
        return
    stretches, shared = chunks(gallery, size), ray.put(gallery)
    items = [{"chunk": number, "start": stretches[number].start, "stop": stretches[number].stop} for number in numbers]
    # Half a CPU: tasks that ask for what the actors ask for would be run inside these, one after the other with them.
    decoded = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        partial(_decoded, shared=shared), batch_size=1, num_cpus=0.5
    )
    found = decoded.map_batches(_Predictor, fn_constructor_args=(way,), batch_size=None, **actor_each_node())
    for batch in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield batch["chunk"][0].as_py(), _table(batch)


def _table(batch: pa.Table) -> pa.Table:
    raw = [row.ravel() for row in batch["raw"].to_numpy(zero_copy_only=False)]
    texts = {name: batch[name].combine_chunks().cast(pa.string()) for name in SCHEMA.names if name != "raw"}
    return pa.table({**texts, "raw": raw}, schema=SCHEMA)


def _decoded(batch: dict[str, np.ndarray], shared: Any) -> dict[str, Any]:
    """A chunk's images, those that cannot be read as black ones with the reason."""
    loaded = ray.get(shared).load(slice(int(batch["start"][0]), int(batch["stop"][0])))
    bad = loaded.findings
    black = np.zeros((len(bad), *loaded.pixels.shape[1:]), np.uint8)
    good = [""] * len(loaded.image_ids)
    return {
        "chunk": np.repeat(batch["chunk"], len(good) + len(bad)),
        "image_id": [*loaded.image_ids, *(finding.image_id for finding in bad)],
        "file": [*good, *(finding.file for finding in bad)],
        "reason": [*good, *(finding.reason for finding in bad)],
        "detail": [*good, *(finding.detail for finding in bad)],
        "pixels": np.concatenate([loaded.pixels, black]),
    }


class _Predictor:
    """An actor's models, loaded once."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.ensembles = [
            [(forward(saved.load(uri, way.precision)), share) for uri, share in members.items()]
            for members in way.ensembles
        ]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pixels = batch.pop("pixels")
        pictures = [view(pixels, index) for index in range(self.way.views)]
        batch["raw"] = np.concatenate([self._mean(members, pictures) for members in self.ensembles], axis=1)
        return batch

    def _mean(self, members: list[tuple[Any, float]], pictures: list[np.ndarray]) -> np.ndarray:
        mean = np.zeros((len(pictures[0]), len(CODES)), np.float32)
        for model, share in members:
            for picture in pictures:
                mean += share / len(pictures) * predict(model, picture, self.way.batch_size)
        return mean


def forward(model: Any) -> Callable[[np.ndarray], tf.Tensor]:
    """The model's compiled inference."""
    return tf.function(lambda pixels: model(pixels, training=False))
