"""Saved classifiers: what a user names as model, checked before anything in it is executed, and loaded.

Only Keras's own `.keras` files are opened, in safe mode: JSON and arrays, no pickle and no code.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ham_ray import storage
from ham_ray.data import cells
from ham_ray.data.classes import Classes
from ham_ray.errors import UserError, some
from ham_ray.evaluation.calibration import Calibration
from ham_ray.evaluation.predictions import NEW, SPLITS
from ham_ray.inference import run_files, scan
from ham_ray.models import registry
from ham_ray.runs import CALIBRATION, DATA_CARD, FINALS, METRICS, MODEL, SPLIT, WINNER

if TYPE_CHECKING:
    import keras

_EXACT = ("Rescaling", "Normalization", "GlobalAveragePooling2D", "Softmax")  # stay in float32, as the head does


@dataclass(frozen=True)
class Saved:
    """A classifier as its run or search left it: one model, or several whose probabilities are averaged.

    Args:
        name: as the user wrote it.
        members: path of each `.keras` file -> its share in the mean; the shares sum to 1.
        size: side of the images it takes, in pixels.
        classes: of its probabilities, in their order.
        geometry: how pictures of other shapes were made square for it; None where nothing says it.
        calibration: fitted on its validation images; None where there is none beside the model.
        splits: the split of each image and group it was trained or evaluated on; empty where nothing says it.
        views: symmetries of each image that it was evaluated in.
        weights: what its backbone started from, in words; None where nothing says it.
    """

    name: str
    members: dict[str, float]
    size: int
    classes: Classes
    geometry: str | None
    calibration: Calibration | None
    splits: dict[str, str]
    views: int = 1
    weights: str | None = None

    @property
    def content(self) -> list[list[Any]]:
        """The sha256 of each member's file, in hex, with its share."""
        each = ([hashlib.sha256(storage.read_bytes(uri)).hexdigest(), share] for uri, share in self.members.items())
        return sorted(each)

    @cached_property
    def loose_splits(self) -> dict[str, str]:
        """The split by `cells.loose` ids; of several ids that are alike the one nearest to training."""
        pairs = sorted(self.splits.items(), key=lambda pair: SPLITS.index(pair[1]), reverse=True)
        return {cells.loose(name): split for name, split in pairs}


def find(path: str) -> Saved:
    """Find the classifier at a `.keras` file, in a run folder, or named by a finished search.

    Raises:
        UserError: there is no model at the path, or one that is not of this project.
    """
    uri = storage.absolute(path)
    if uri.partition("?")[0].endswith(".keras"):
        return _run(path, uri, storage.parent(uri))
    if storage.exists(storage.join(uri, MODEL)):
        return _run(path, storage.join(uri, MODEL), uri)
    for folder in (uri, storage.join(uri, FINALS)):
        if storage.exists(storage.join(folder, WINNER)):
            return _winner(path, folder)
    result = [folder for folder in storage.folders(uri) if storage.exists(storage.join(folder, MODEL))]
    hint = f"; name one of {some(result, 3)}" if result else ""
    raise UserError(
        f"--model {path}: no model there: neither a .keras file, nor a run folder with {MODEL}, nor a search that "
        f"named a winner{hint}"
    )


def load(uri: str, precision: str = "float32") -> keras.Model:
    """Load a saved model, in Keras's safe mode: uint8 RGB [B, size, size, 3] in, probabilities float32 [B, K] out.

    With `precision` "bfloat16" its convolutions compute in that, with BatchNorm folded into them; its weights stay
    float32.

    Raises:
        UserError: see `scan.open_file`; or what it describes cannot be built or filled.
    """
    import keras  # here: what `find` tells is known before TensorFlow starts

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MODEL)
        path.write_bytes(scan.open_file(uri).content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what it skips: where that is needed it raises in the end
                model = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # of a wrong description or missing variables Keras raises whatever it runs into
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"--model {uri} cannot be loaded: {reason}; save or copy it again") from None
    return _lowered(model) if precision == "bfloat16" else model


def calibrated(values: np.ndarray, models: list[Saved], raw: bool = False) -> np.ndarray:
    """Average over models, each calibrated by itself where it can be: float[N, K] of float[N, models, K]."""
    each = [
        values[:, index] if raw or model.calibration is None else model.calibration.apply(values[:, index])
        for index, model in enumerate(models)
    ]
    return np.mean(each, axis=0)


def split_of(saved: list[Saved], image_id: str, group_id: str) -> str:
    """Return the split of an image for several classifiers together: training, where one of them has learned from it.

    A name that differs from a known one in case or suffix alone is that image: as a new one it would flatter the model.
    """
    loose = cells.loose(image_id)
    result = {one.splits.get(image_id) or one.splits.get(group_id) or one.loose_splits.get(loose, NEW) for one in saved}
    return next(split for split in SPLITS if split in result)


def name_notes(saved: list[Saved], image_ids: Iterable[str]) -> list[str]:
    """Write a line where names count as those of known images from which they differ in case or suffix alone."""
    differing = [
        image_id
        for image_id in image_ids
        if any(image_id not in one.splits and cells.loose(image_id) in one.loose_splits for one in saved)
    ]
    if not differing:
        return []
    return [
        f"{len(differing):,} images have names that a model knows in another case or without suffix "
        f"({some(differing)}): they count as those"
    ]


def _run(name: str, model: str, folder: str) -> Saved:
    file = scan.open_file(model)
    return Saved(
        name=name,
        members={model: 1.0},
        size=file.size,
        classes=file.classes,
        geometry=run_files.geometry(storage.join(folder, DATA_CARD)),
        calibration=run_files.calibration(storage.join(folder, CALIBRATION), len(file.classes)),
        splits=run_files.splits(storage.join(folder, SPLIT)),
        weights=run_files.weights(storage.join(folder, METRICS)),
    )


def _winner(name: str, folder: str) -> Saved:
    """Describe the trainings that the finals averaged, each trial with equal weight."""
    winner = run_files.winner(storage.join(folder, WINNER))
    names = [run for runs in winner.members for run in runs]
    runs = {run: _run(run, storage.join(folder, run, MODEL), storage.join(folder, run)) for run in names}
    first = runs[names[0]]
    run_files.check_prior(storage.join(folder, WINNER), winner.calibration, len(first.classes))
    return Saved(
        name=name,
        members={
            storage.join(folder, run, MODEL): 1.0 / len(winner.members) / len(runs)
            for runs in winner.members
            for run in runs
        },
        size=first.size,
        classes=first.classes,
        geometry=first.geometry,
        calibration=winner.calibration,
        splits=_together([run.splits for run in runs.values()]),
        views=winner.views,
        weights=first.weights,
    )


def _together(result: list[dict[str, str]]) -> dict[str, str]:
    """Join the splits of several models: an image or a group has the first of `SPLITS` that it has in any of them."""
    every = {key for splits in result for key in splits}
    return {key: min((splits[key] for splits in result if key in splits), key=SPLITS.index) for key in every}


def _lowered(model: keras.Model) -> keras.Model:
    """Rebuild a model with its network's layers in bfloat16; weights, preprocessing, means and head stay in float32."""
    import keras

    from ham_ray.models.folding import folded

    exact = {layer.name for layer in model.get_layer("head").layers}
    architecture = registry.of_classifier(model)
    if architecture:  # what is around its network: preprocessing and pooling
        around = model.get_layer(architecture.name).layers
        exact |= {layer.name for layer in around if not isinstance(layer, keras.Model)}

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer) and type(layer).__name__ not in _EXACT and layer.name not in exact:
            config["dtype"] = "mixed_bfloat16"  # operations, which are no layers, have none
        return layer.__class__.from_config(config)

    lowered = keras.models.clone_model(model, clone_function=clone, recursive=True)
    lowered.set_weights(model.get_weights())
    return folded(lowered, architecture.thin if architecture else None)
