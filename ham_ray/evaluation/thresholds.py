"""Thresholds on the probability of the class in focus: chosen on validation images, applied to any others."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# What is asked for on validation: name -> (which rate, at least how much).
POINTS = {
    "specificity_90": ("specificity", 0.90),
    "specificity_95": ("specificity", 0.95),
    "sensitivity_90": ("sensitivity", 0.90),
    "sensitivity_95": ("sensitivity", 0.95),
}


def choose(y_true: NDArray[np.integer], p: NDArray[np.floating], focus: int | None) -> dict[str, float]:
    """Choose the threshold of each of `POINTS` on y_true int[N] and p[N, K]: images at or above it are positive.

    For a specificity it is the least threshold that reaches it, for a sensitivity the greatest; without images of the
    class in focus (its label), or without others, the points that need them are left out.
    """
    if focus is None:
        return {}
    scores, positive = p[:, focus].astype(np.float64), y_true == focus
    chosen = {}
    for name, (rate, wanted) in POINTS.items():
        of_interest = np.sort(scores[positive if rate == "sensitivity" else ~positive])
        if not len(of_interest):
            continue
        needed = math.ceil(wanted * len(of_interest) - 1e-9)
        if rate == "sensitivity":
            chosen[name] = float(of_interest[len(of_interest) - needed])
        else:
            chosen[name] = float(np.nextafter(of_interest[needed - 1], np.inf))
    return chosen


def called(p: NDArray[np.floating], thresholds: Mapping[str, float], focus: int | None) -> dict[str, NDArray[np.bool_]]:
    """Say which images of p[N, K] reach each threshold of the class in focus (its label), bool[N]."""
    if focus is None:
        return {}
    scores = p[:, focus].astype(np.float64)  # a threshold lies between two float32 values: not to be rounded to one
    return {name: scores >= threshold for name, threshold in thresholds.items()}
