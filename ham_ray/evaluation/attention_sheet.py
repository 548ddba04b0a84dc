"""The sheet of where a model looked: right and wrong examples of each class, and how much of it was in the corners."""

from __future__ import annotations

import io
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ham_ray.diagnoses import CODES
from ham_ray.evaluation import metrics
from ham_ray.evaluation.figures import STYLE
from ham_ray.evaluation.predictions import arrays

EXAMPLES = 2  # right and wrong ones of each class
SHOWN = 96  # pixels of an example


@dataclass(frozen=True)
class Corners:
    """Mean share of attention in the corners of images with dark ones and without; `area` is what chance would give.

    `images` have dark corners; `melanomas` is the share of melanomas among them.
    """

    area: float
    dark: float | None
    bright: float | None
    images: int
    melanomas: float | None


@dataclass(frozen=True)
class Attention:
    """The sheet as a JPEG, and the corners."""

    sheet: bytes
    corners: Corners


def choose(test: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Rows to show: for each class up to `EXAMPLES` that were called rightly and as many that were not, drawn."""
    truth, p = arrays(test)
    called = metrics.predicted(p)
    rows = test.assign(called=called, right=called == truth).sample(frac=1, random_state=seed)
    shown = rows.groupby(["y_true", "right"], sort=True).head(EXAMPLES)
    return shown.sort_values(["y_true", "right"], ascending=[True, False], kind="stable")


def draw(shown: pd.DataFrame, pixels: NDArray[np.uint8], maps: NDArray[np.floating]) -> bytes:
    """A JPEG: a row a class, right calls on the left and wrong ones on the right, warm colours where the model looked.

    Args:
        shown: rows of `choose`.
        pixels: their images, uint8[n, size, size, 3].
        maps: where the model looked for the class that it called, float[n, size, size].
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * EXAMPLES * 1.35 + 0.6, len(CODES) * 1.55), layout="constrained")
        grid = figure.subplots(len(CODES), 2 * EXAMPLES)
        for axes in grid.flat:
            axes.axis("off")
        for place, (label, right) in enumerate(zip(shown["y_true"], shown["right"], strict=True)):
            same = (shown["y_true"].iloc[:place] == label) & (shown["right"].iloc[:place] == right)
            axes = grid[label, int(same.sum()) + (0 if right else EXAMPLES)]
            axes.imshow(_overlaid(pixels[place], maps[place]))
            axes.set_title(f"{CODES[label]} → {CODES[shown['called'].iloc[place]]}", fontsize=8, loc="center")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="jpeg", dpi=95, pil_kwargs={"quality": 85})
        return buffer.getvalue()


def _overlaid(pixels: NDArray[np.uint8], attention: NDArray[np.floating]) -> NDArray[np.uint8]:
    heat = attention / max(float(attention.max()), 1e-12)
    colours = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    alpha = 0.55 * heat[..., None]
    found = Image.fromarray(np.asarray((1 - alpha) * pixels + alpha * colours, np.uint8))
    return np.asarray(found.resize((SHOWN, SHOWN), Image.Resampling.BICUBIC))
