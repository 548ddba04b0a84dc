"""Saved classifiers: what a user names as model, checked before anything of it is executed, and loaded.

Only Keras's own `.keras` files are opened, in safe mode: JSON and arrays, no pickle and no code.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ham_ray import storage
from ham_ray.diagnoses import CODES
from ham_ray.errors import UserError
from ham_ray.evaluation.calibration import Calibration
from ham_ray.evaluation.predictions import NEW, SPLITS
from ham_ray.runs import CALIBRATION, DATA_CARD, FINALS, METRICS, MODEL, SPLIT, WINNER

if TYPE_CHECKING:
    import keras

_CONFIG = "config.json"  # in a .keras file: its layers
_IN_HALF = ("Conv2D", "BatchNormalization", "Activation", "ReLU", "Add", "ZeroPadding2D", "MaxPooling2D")


@dataclass(frozen=True)
class Saved:
    """A classifier as its run or search left it: one model, or several whose probabilities are averaged.

    Args:
        name: as the user gave it.
        members: place of each `.keras` file -> its share in the mean; the shares sum to 1.
        size: side of the images it takes, in pixels.
        geometry: how those were made from pictures of other shapes; None where nothing says it.
        calibration: fitted on its validation images; None where there is none beside the model.
        splits: the split of each image and group it has to do with; empty where nothing says it.
        views: symmetries of each image that it was evaluated in.
        weights: what its backbone started from, in words; None where nothing says it.
    """

    name: str
    members: dict[str, float]
    size: int
    geometry: str | None
    calibration: Calibration | None
    splits: dict[str, str]
    views: int = 1
    weights: str | None = None


def find(place: str) -> Saved:
    """The classifier at a `.keras` file, in a run folder, or named by a finished search.

    Raises:
        UserError: there is none, or it is none of this project's; with what was found.
    """
    uri = storage.absolute(place)
    if uri.partition("?")[0].endswith(".keras"):
        return _run(place, uri, storage.parent(uri))
    if storage.exists(storage.join(uri, MODEL)):
        return _run(place, storage.join(uri, MODEL), uri)
    for folder in (uri, storage.join(uri, FINALS)):
        if storage.exists(storage.join(folder, WINNER)):
            return _winner(place, folder)
    found = [folder for folder in storage.folders(uri) if storage.exists(storage.join(folder, MODEL))]
    hint = f"; name one of {', '.join(found)}" if found else ""
    raise UserError(
        f"--model {place}: no model there: neither a .keras file, nor a run folder with {MODEL}, nor a search that "
        f"named a winner{hint}"
    )


def load(uri: str, precision: str = "float32") -> keras.Model:
    """A saved model, in Keras's safe mode: uint8 RGB [B, size, size, 3] in, probabilities float32 [B, 7] out.

    With `precision` "bfloat16" its convolutions compute in that, with BatchNorm folded into them; its weights stay
    float32.

    Raises:
        UserError: the file holds code, or is damaged.
    """
    import keras  # here: what `find` tells is known before TensorFlow starts

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MODEL)
        path.write_bytes(storage.read_bytes(uri))
        try:
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        except (ValueError, TypeError, OSError, KeyError) as error:
            raise UserError(f"--model {uri} cannot be loaded safely: {str(error).splitlines()[0]}") from None
    return _lowered(model) if precision == "bfloat16" else model


def split_of(saved: list[Saved], image_id: str, group_id: str) -> str:
    """The split of an image for several classifiers together: what one of them learned from is training."""
    found = {one.splits.get(image_id) or one.splits.get(group_id, NEW) for one in saved}
    return next(split for split in SPLITS if split in found)


def _run(name: str, model: str, folder: str) -> Saved:
    calibration = _json(storage.join(folder, CALIBRATION))
    return Saved(
        name=name,
        members={model: 1.0},
        size=check(model),
        geometry=(_json(storage.join(folder, DATA_CARD)) or {}).get("geometry"),
        calibration=Calibration(**calibration) if calibration else None,
        splits=_splits(storage.join(folder, SPLIT)),
        weights=(_json(storage.join(folder, METRICS)) or {}).get("info", {}).get("weights"),
    )


def _winner(name: str, folder: str) -> Saved:
    """The trainings that the finals averaged, each trial with equal weight."""
    told = json.loads(storage.read_bytes(storage.join(folder, WINNER)))
    if "members" not in told:
        raise UserError(f"--model {name}: its {WINNER} names no models; run the search's command again, it adds them")
    runs = {run: _run(run, storage.join(folder, run, MODEL), storage.join(folder, run)) for run in _flat(told)}
    first = next(iter(runs.values()))
    return Saved(
        name=name,
        members={
            place: 1.0 / len(told["members"]) / len(names)
            for names in told["members"].values()
            for place in (storage.join(folder, run, MODEL) for run in names)
        },
        size=first.size,
        geometry=first.geometry,
        calibration=Calibration(**told["calibration"]),
        splits=_together([run.splits for run in runs.values()]),
        views=told["views"],
        weights=first.weights,
    )


def _flat(told: dict[str, Any]) -> list[str]:
    return [run for names in told["members"].values() for run in names]


def _together(found: list[dict[str, str]]) -> dict[str, str]:
    """Of several models: the first of `SPLITS` that an image or a group has in any of them."""
    every = {key for splits in found for key in splits}
    return {key: min((splits[key] for splits in found if key in splits), key=SPLITS.index) for key in every}


def _splits(uri: str) -> dict[str, str]:
    if not storage.exists(uri):
        return {}
    table = pd.read_parquet(io.BytesIO(storage.read_bytes(uri)))
    return dict(zip(table["group_id"], table["split"], strict=True)) | dict(
        zip(table["image_id"], table["split"], strict=True)
    )


def _json(uri: str) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def check(uri: str) -> int:
    """The side of the images that a `.keras` file takes, from its description alone: no layer is built.

    Raises:
        UserError: not a Keras 3 file, damaged, with code in it, or none of this project's classifiers.
    """
    if not storage.exists(uri):
        raise UserError(f"--model {uri}: no such file")
    try:
        with zipfile.ZipFile(io.BytesIO(storage.read_bytes(uri))) as archive:
            config = json.loads(archive.read(_CONFIG))
            damaged = archive.testzip()
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise UserError(
            f"--model {uri} is no Keras 3 file (.keras: a zip with a {_CONFIG}); other kinds of files are not opened, "
            "they may hold code"
        ) from None
    if damaged:
        raise UserError(f"--model {uri} is damaged: the checksum of its {damaged} does not hold; copy it again")
    if foreign := sorted(_foreign(config)):
        raise UserError(
            f"--model {uri} cannot be loaded safely: it holds code or layers of its own: {', '.join(foreign)}"
        )
    inner = config.get("config", {})
    first, last = (inner.get("layers") or [{}])[0].get("config", {}), (inner.get("layers") or [{}])[-1].get("name")
    shape, kind, classes = first.get("batch_shape") or [], first.get("dtype"), _units(config, "logits")
    if (inner.get("name"), kind, last, classes) != ("ham_ray", "uint8", "probabilities", len(CODES)) or len(shape) != 4:
        raise UserError(
            f"--model {uri} is no classifier of this project: named {inner.get('name')!r}, it takes {kind} of shape "
            f"{shape} and ends in {last!r} of {classes or 'unknown'} classes; expected 'ham_ray', uint8 images and "
            f"'probabilities' of {len(CODES)}"
        )
    return int(shape[1])


def _foreign(config: Any) -> set[str]:
    """Names of what a model's description builds that is not Keras's own, or runs code out of the file."""
    parts = list(config.values()) if isinstance(config, dict) else config if isinstance(config, list) else []
    found = set().union(*map(_foreign, parts))
    if isinstance(config, dict) and (name := config.get("class_name")):
        module = config.get("module") or "keras"
        if name == "Lambda" or module.partition(".")[0] not in ("keras", "builtins"):
            found.add(f"{module}.{name}")
    return found


def _units(config: Any, name: str) -> int | None:
    """The units of the layer of that name, at any depth of a model's description."""
    if isinstance(config, dict):
        if config.get("name") == name and "units" in config:
            return int(config["units"])
        config = list(config.values())
    if isinstance(config, list):
        return next((units for part in config if (units := _units(part, name)) is not None), None)
    return None


def _lowered(model: keras.Model) -> keras.Model:
    """The same weights with convolutions and what lies between them in bfloat16; preprocessing and head in float32."""
    import keras

    from ham_ray.models.folding import folded

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if type(layer).__name__ in _IN_HALF:
            config["dtype"] = "mixed_bfloat16"
        return layer.__class__.from_config(config)

    lowered = keras.models.clone_model(model, clone_function=clone, recursive=True)
    lowered.set_weights(model.get_weights())
    return folded(lowered)
