"""Tests of finished models on images of elsewhere, `--external`: predicted once, calibrated by validation alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ham_ray import storage
from ham_ray.console import progress
from ham_ray.data.classes import common
from ham_ray.data.images import Images
from ham_ray.data.prepare import prepare
from ham_ray.errors import UserError
from ham_ray.evaluation import predictions
from ham_ray.inference import pipeline, saved
from ham_ray.inference.pipeline import InferenceConfig
from ham_ray.inference.saved import Saved
from ham_ray.recipe import digest
from ham_ray.report.summary import Run

FOLDER = "external"  # below a comparison's folder: the predictions


@dataclass(frozen=True)
class External:
    """An external test set: its table, and those of its rows that no model here can know.

    left_out: images that are one of the trained table, of one of its lesions, or equal in pixels.
    """

    name: str
    images: Images
    rows: pd.DataFrame
    left_out: int


def opened(paths: Sequence[str], out: str, trained: Images) -> list[External]:
    """Open external test sets; archives are ingested at the size of the trained images.

    Raises:
        UserError: one is of other classes, of another size or geometry, or has no image that is new.
    """
    result = []
    for path in paths:
        with progress("ingest") as advance:
            images = prepare(path, storage.absolute(out), trained.size, advance)
        name = Path(path.rstrip("/")).stem
        common([("--data", trained.classes), (f"--external {path}", images.classes)], "images are", "leave one out")
        own, theirs = (f"{one.size} px ({one.card['geometry']})" for one in (trained, images))
        if own != theirs:
            raise UserError(f"--external {path}: a table of {theirs}, --data has {own}; give the archive itself")
        rows = images.rows[~_known(images.rows, trained.rows)]
        if rows.empty:
            raise UserError(f"--external {path}: each of its {len(images.rows):,} images is one of --data")
        result.append(External(name, images, rows, len(images.rows) - len(rows)))
        print(f"external: {name}, {len(rows):,} images; {_left_out(result[-1])}", flush=True)
    return result


def _known(rows: pd.DataFrame, trained: pd.DataFrame) -> pd.Series:
    """Say of each row whether it, its lesion or its pixels are in the trained table."""
    lesions = trained["lesion_id"].dropna()
    same = [rows[name].isin(trained[name]) for name in ("image_id", "pixel_hash")]
    return same[0] | same[1] | rows["lesion_id"].isin(lesions[lesions != ""])


def _left_out(external: External) -> str:
    return f"{external.left_out:,} left out, which are images of --data, of its lesions, or equal in pixels"


def tested(externals: Sequence[External], models: Mapping[str, list[str]], out: str) -> dict[str, Run]:
    """Predict each external set by each of the models, which are paths of runs whose probabilities are averaged.

    Predictions are kept in the folder `out`; those of the same models that are there are read.
    """
    return {
        f"{name} on {external.name}": _tested(external, name, paths, out)
        for external in externals
        for name, paths in models.items()
    }


def _tested(external: External, name: str, paths: list[str], out: str) -> Run:
    found = [saved.find(path) for path in paths]
    content = [[model.content, model.views, model.calibration and model.calibration.applied_values] for model in found]
    known = f"{name}-{external.name}-{digest(external.images.fingerprint, content)}.parquet"
    target = storage.join(out, FOLDER, known)
    if not storage.exists(target):
        print(f"\n{name} on {external.name}: {len(found)} model(s)", flush=True)
        predictions.write(_predicted(external, found), target)
    info = {"weights": found[0].weights, "warnings": [_left_out(external)] if external.left_out else []}
    return Run(predictions.read(target), None, info)


def _predicted(external: External, models: list[Saved]) -> pd.DataFrame:
    """Make the PREDICTIONS: the mean of the models' probabilities, each calibrated by its own validation images."""
    sizes, members = tuple(model.size for model in models), tuple(model.members for model in models)
    config, classes = InferenceConfig(members, sizes, max(model.views for model in models)), external.images.classes
    raw = pipeline.predict_table(config, external.images, external.rows)
    raw = raw.reshape(len(raw), len(models), len(classes))
    return predictions.predictions(external.rows, predictions.NEW, saved.calibrated(raw, models), classes)
