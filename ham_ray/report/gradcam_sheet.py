"""The sheet of where a model looked: right and wrong examples of each class, and how much attention the corners got."""

from __future__ import annotations

import io
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ham_ray.data.classes import Classes
from ham_ray.evaluation import metrics
from ham_ray.evaluation.predictions import arrays
from ham_ray.report.figures import STYLE

EXAMPLES = 2  # right and wrong ones of each class
SHOWN = 110  # pixels of an example
_COLOURS = "viridis"  # even in brightness, and the same to the colour-blind
_SMOOTH = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Corners:
    """Mean share of attention in the corners of images with dark corners and without; `area` is what chance would give.

    `images` counts those with dark corners; `focused` is the share of the class in `focus` (its name) among them,
    `others` its share among the other images; None where there is no such class.
    """

    area: float
    dark: float | None
    bright: float | None
    images: int
    focus: str | None
    focused: float | None
    others: float | None

    def sentences(self) -> list[str]:
        """Say what these figures say, and only that."""
        if self.dark is None:
            return ["No image here has dark corners (the edge of the dermatoscope)."]
        others = f"; of the other images {_percent(self.others)}" if self.others is not None else ""
        share = f", {_percent(self.focused)} of them {self.focus}s{others}" if self.focused is not None else ""
        elsewhere = f", {_percent(self.bright, 1)} elsewhere" if self.bright is not None else ""
        said = [
            f"{self.images:,} image{'s have' if self.images > 1 else ' has'} dark corners (the edge of the "
            f"dermatoscope){share}.",
            f"The corners are {_percent(self.area)} of the area and get {_percent(self.dark, 1)} of the attention "
            f"where they are dark{elsewhere}.",
        ]
        commoner = self.focused is not None and self.others is not None and self.focused > self.others
        if commoner and self.dark > max(self.area, self.bright or 0.0):
            said.append(
                f"Dark corners are commoner with {self.focus} here, and the model looks there: it may go by them."
            )
        return said


@dataclass(frozen=True)
class Attention:
    """The sheet as a JPEG, and the figures of the corners."""

    sheet: bytes
    corners: Corners


def choose(test: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Draw the rows to show: for each class up to `EXAMPLES` that were predicted rightly and as many that were not."""
    truth, p = arrays(test)
    called = metrics.predicted(p)
    rows = test.assign(called=called, right=called == truth).sample(frac=1, random_state=seed)
    shown = rows.groupby(["y_true", "right"], sort=True).head(EXAMPLES)
    return shown.sort_values(["y_true", "right"], ascending=[True, False], kind="stable")


def draw(shown: pd.DataFrame, pixels: NDArray[np.uint8], maps: NDArray[np.floating], classes: Classes) -> bytes:
    """Draw a JPEG: a row a class, right predictions on the left and wrong ones on the right, each image beside its map.

    Args:
        shown: rows of `choose`.
        pixels: their images, uint8[n, size, size, 3].
        maps: where the model looked for the class that it called, float[n, size, size].
    """
    codes = classes.codes
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4 * EXAMPLES * 1.3 + 0.7, len(codes) * 1.5), layout="constrained")
        grid = figure.subplots(len(codes), 4 * EXAMPLES)
        for axes in grid.flat:
            axes.axis("off")
        for index, (label, right) in enumerate(zip(shown["y_true"], shown["right"], strict=True)):
            same = (shown["y_true"].iloc[:index] == label) & (shown["right"].iloc[:index] == right)
            column = 2 * (int(same.sum()) + (0 if right else EXAMPLES))
            heat = maps[index] / max(float(maps[index].max()), 1e-12)
            grid[label, column].imshow(_sized(pixels[index]))
            grid[label, column].set_title(
                f"{codes[label]} → {codes[shown['called'].iloc[index]]}", fontsize=9, loc="center"
            )
            _draw_map(grid[label, column + 1], pixels[index], heat)
        scale = figure.colorbar(ScalarMappable(Normalize(0, 1), _COLOURS), ax=grid, shrink=0.5, aspect=40, pad=0.01)
        scale.set_label("share of the most in this image")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="jpeg", dpi=95, pil_kwargs={"quality": 85})
        return buffer.getvalue()


def _draw_map(axes: Axes, pixels: NDArray[np.uint8], heat: NDArray[np.floating]) -> None:
    """Draw the map in colours over the image in grey, with a line at half of the map's maximum."""
    grey = pixels.mean(axis=2, keepdims=True)
    colours = matplotlib.colormaps[_COLOURS](heat)[..., :3] * 255
    axes.imshow(_sized(np.asarray(0.35 * grey + 0.65 * colours, np.uint8)))
    if np.ptp(heat) > 0:
        outline = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((SHOWN, SHOWN), _SMOOTH))
        axes.contour(outline, levels=[0.5], colors="white", linewidths=1.0)


def _sized(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize((SHOWN, SHOWN), _SMOOTH))


def _percent(share: float, decimals: int = 0) -> str:
    return f"{100 * share:.{decimals}f} %"
