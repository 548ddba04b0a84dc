"""Where a finished run's model looked on the test images: a sheet of examples, and the share in dark corners."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd

from ham_ray.console import progress
from ham_ray.data.images import Images
from ham_ray.data.stored import StoredRows
from ham_ray.evaluation import assessment, metrics
from ham_ray.evaluation.predictions import arrays, classes_of
from ham_ray.hardware import cores
from ham_ray.inference import saved
from ham_ray.models import registry
from ham_ray.models.architecture import Saliency
from ham_ray.models.gradcam import CORNER, has_vignette, in_corners
from ham_ray.report import gradcam_sheet
from ham_ray.report.gradcam_sheet import Attention, Corners

_DARK, _BRIGHT = 1000, 200  # images with and without dark corners that are looked at, at most
_READ, _BATCH = 512, 64


def attention(model: str, frame: pd.DataFrame, images: Images) -> Attention | None:
    """Draw where the model saved at `model` looked on the reported images of its PREDICTIONS, which are in `images`.

    Return None where the model's architecture has no saliency map.
    """
    network = saved.load(model)
    architecture = registry.of_classifier(network)
    if architecture is None or architecture.saliency is None:
        return None
    saliency = architecture.saliency
    test = assessment.reported(frame)
    rows = images.fold(*test["fold"].unique().tolist())
    stored = images.stored(rows)
    row_of = {image_id: number for number, image_id in enumerate(rows["image_id"])}
    shown, classes = gradcam_sheet.choose(test), classes_of(test)
    chosen = stored[np.array([row_of[image_id] for image_id in shown["image_id"]])].pixels()
    sheet = gradcam_sheet.draw(shown, chosen, saliency(network, chosen, shown["called"].to_numpy()), classes)
    truth, p = arrays(test.set_index("image_id", drop=False).loc[rows["image_id"]])
    dark = _dark(stored)
    looked_at = {"dark": _some(dark, _DARK), "bright": _some(~dark, _BRIGHT)}
    shares = {
        name: _shares(saliency, network, stored[taken], metrics.predicted(p)[taken])
        for name, taken in looked_at.items()
    }
    focus = classes.name(classes.focus) if classes.focus else None
    focused, others = (
        float((truth[of] == classes.focus_label).mean()) if focus and of.any() else None for of in (dark, ~dark)
    )
    corners = Corners((2 * CORNER) ** 2, shares["dark"], shares["bright"], int(dark.sum()), focus, focused, others)
    return Attention(sheet, corners)


def _dark(stored: StoredRows) -> np.ndarray:
    """Say which images have dark corners, bool[n]; decoded some at a time."""
    found: list[np.ndarray] = []
    with progress("looking for dark corners") as advance:
        for piece in stored.stretches(_READ):
            found.append(has_vignette(piece.pixels(cores())))
            advance(sum(map(len, found)), len(stored))
    return np.concatenate(found)


def _some(chosen: np.ndarray, most: int) -> np.ndarray:
    """Return the numbers of the images chosen, or so many of them, drawn."""
    numbers = np.flatnonzero(chosen)
    return np.random.default_rng(0).permutation(numbers)[:most] if len(numbers) > most else numbers


def _shares(saliency: Saliency, network: keras.Model, stored: StoredRows, called: np.ndarray) -> float | None:
    """Return the mean share of the saliency that lies in the corners of these images; None of none."""
    result: list[np.ndarray] = []
    with progress("saliency maps") as advance:
        for start in range(0, len(stored), _BATCH):
            batch = slice(start, start + _BATCH)
            result.append(in_corners(saliency(network, stored[batch].pixels(cores()), called[batch])))
            advance(sum(map(len, result)), len(stored))
    return float(np.concatenate(result).mean()) if result else None
