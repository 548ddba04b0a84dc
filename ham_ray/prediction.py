"""Prediction by saved models over Ray Data: actors that load the models once, tasks that decode for them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from ham_ray import storage
from ham_ray.cluster import actor_each_node
from ham_ray.console import progress
from ham_ray.data.augment import view
from ham_ray.data.images import Images, read
from ham_ray.training.step import PREDICT_BATCH, predict


def predict_rows(models: list[str], images: Images, rows: pd.DataFrame, views: int = 1) -> np.ndarray:
    """Probabilities float32[n, 7] of `rows`, the mean over models and over the first `views` of the eight symmetries.

    Args:
        models: paths or URIs of saved models, as training leaves them: uint8 RGB in, probabilities out.
        rows: a stretch of `images.fold(…)`, as `read` takes it.
    """
    predicted = read(images, rows).map_batches(
        _Predictor,
        fn_constructor_args=(models, views),
        batch_size=PREDICT_BATCH,
        **actor_each_node(),
    )
    found: dict[str, np.ndarray] = {}
    with progress("prediction") as told:
        for batch in predicted.iter_batches(batch_size=None):
            found |= dict(zip(batch["image_id"].astype(str), batch["probabilities"], strict=True))
            told(len(found), len(rows))
    return np.stack([found[image_id] for image_id in rows["image_id"]])


class _Predictor:
    def __init__(self, models: list[str], views: int) -> None:
        self.forwards, self.views = [_forward(uri) for uri in models], views

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        pictures = [view(batch["pixels"], index) for index in range(self.views)]
        found = [predict(forward, picture) for forward in self.forwards for picture in pictures]
        return {"image_id": batch["image_id"], "probabilities": np.mean(found, axis=0)}


def _forward(uri: str) -> Callable[[np.ndarray], tf.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        path.write_bytes(storage.read_bytes(uri))
        model = keras.models.load_model(path)
    return tf.function(lambda pixels: model(pixels, training=False))
