"""Where a finished run's model looked on the test images: a sheet of examples, and the share in dark corners."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd

from ham_ray.console import progress
from ham_ray.data.images import Images, read_pixels
from ham_ray.evaluation import assessment, metrics
from ham_ray.evaluation.predictions import arrays, classes_of
from ham_ray.inference import saved
from ham_ray.models import registry
from ham_ray.models.architecture import Saliency
from ham_ray.models.gradcam import CORNER, has_vignette, in_corners
from ham_ray.report import gradcam_sheet
from ham_ray.report.gradcam_sheet import Attention, Corners

_BRIGHT = 200  # images without dark corners that are looked at, of the 2,000
_BATCH = 64


def attention(model: str, frame: pd.DataFrame, images: Images) -> Attention | None:
    """Of the saved model at `model` on the reported images of its PREDICTIONS, which are in `images`; None where its
    architecture has no saliency map."""
    network = saved.load(model)
    architecture = registry.of_classifier(network)
    if architecture is None or architecture.saliency is None:
        return None
    saliency = architecture.saliency
    test = assessment.reported(frame)
    rows = images.fold(*test["fold"].unique().tolist())
    pixels = read_pixels(images, rows)
    row_of = {image_id: number for number, image_id in enumerate(rows["image_id"])}
    shown, classes = gradcam_sheet.choose(test), classes_of(test)
    chosen = pixels[[row_of[image_id] for image_id in shown["image_id"]]]
    sheet = gradcam_sheet.draw(shown, chosen, saliency(network, chosen, shown["called"].to_numpy()), classes)
    truth, p = arrays(test.set_index("image_id", drop=False).loc[rows["image_id"]])
    dark = has_vignette(pixels)
    bright = np.random.default_rng(0).permutation(np.flatnonzero(~dark))[:_BRIGHT]
    shares = {
        name: _shares(saliency, network, pixels[taken], metrics.predicted(p)[taken])
        for name, taken in {"dark": np.flatnonzero(dark), "bright": bright}.items()
    }
    focus = classes.name(classes.focus) if classes.focus else None
    focused, others = (
        float((truth[of] == classes.focus_label).mean()) if focus and of.any() else None for of in (dark, ~dark)
    )
    corners = Corners((2 * CORNER) ** 2, shares["dark"], shares["bright"], int(dark.sum()), focus, focused, others)
    return Attention(sheet, corners)


def _shares(saliency: Saliency, network: keras.Model, pixels: np.ndarray, called: np.ndarray) -> float | None:
    result = []
    with progress("saliency maps") as advance:
        for start in range(0, len(pixels), _BATCH):
            advance(start, len(pixels))
            result.append(in_corners(saliency(network, pixels[start : start + _BATCH], called[start : start + _BATCH])))
    return float(np.concatenate(result).mean()) if result else None
