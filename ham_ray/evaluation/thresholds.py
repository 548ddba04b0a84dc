"""Thresholds on the probability of melanoma: chosen on validation images, applied to any others."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ham_ray.diagnoses import LABELS

MELANOMA = LABELS["mel"]
# What is asked for on validation: name -> (which rate, at least how much).
POINTS = {
    "specificity_90": ("specificity", 0.90),
    "specificity_95": ("specificity", 0.95),
    "sensitivity_90": ("sensitivity", 0.90),
    "sensitivity_95": ("sensitivity", 0.95),
}


def choose(y_true: NDArray[np.integer], p: NDArray[np.floating]) -> dict[str, float]:
    """The threshold of each of `POINTS` on y_true int[N] and p[N, 7]: an image with `p_mel >= threshold` is called.

    For a specificity it is the least threshold that reaches it, for a sensitivity the greatest; without melanomas, or
    without other images, the points that need them are left out.
    """
    scores, melanoma = p[:, MELANOMA].astype(np.float64), y_true == MELANOMA
    found = {}
    for name, (rate, wanted) in POINTS.items():
        of_interest = np.sort(scores[melanoma if rate == "sensitivity" else ~melanoma])
        if not len(of_interest):
            continue
        needed = math.ceil(wanted * len(of_interest) - 1e-9)
        if rate == "sensitivity":
            found[name] = float(of_interest[len(of_interest) - needed])
        else:
            found[name] = float(np.nextafter(of_interest[needed - 1], np.inf))
    return found


def called(p: NDArray[np.floating], thresholds: Mapping[str, float]) -> dict[str, NDArray[np.bool_]]:
    """Which images of p[N, 7] reach each threshold, bool[N]."""
    scores = p[:, MELANOMA].astype(np.float64)  # a threshold lies between two float32 values: not to be rounded to one
    return {name: scores >= threshold for name, threshold in thresholds.items()}
