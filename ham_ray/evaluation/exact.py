"""Exact 95 % limits for figures that no resample changes: all images of a class are right, or all are wrong.

A bootstrap can only draw from what it has: of 11 melanomas that are all predicted as such it makes 11 of 11 in every
resample, an interval without width. There the lesions are counted instead, as independent: Clopper and Pearson,
Biometrika 26 (1934) 404-413. Where each lesion has the same share of hits, but neither all nor none, the hits of its
formula are no whole number, as in Korn and Graubard, Survey Methodology 24 (1998) 193-201.

What is made of several figures, such as balanced accuracy of sensitivities, adds the squared distances of the
limits: Zou, Huang and Zhang, "A note on confidence interval estimation for a linear function of binomial proportions",
Computational Statistics & Data Analysis 53 (2009) 1080-1085.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import beta

from ham_ray.data.classes import Classes
from ham_ray.evaluation import metrics

_TAIL = 0.025  # outside each limit


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval; `low` and `high` are None where only the value is known (published figures).

    Exact limits of a share name what was counted: `hits` of `images`, which show `lesions` different lesions.
    """

    value: float
    low: float | None = None
    high: float | None = None
    hits: int | None = None
    images: int | None = None
    lesions: int | None = None

    @property
    def counted(self) -> str:
        """The hits and the images in words, such as "11 of 11"; empty for all but exact limits of a share."""
        return f"{self.hits:,} of {self.images:,}" if self.hits is not None else ""

    def facts(self) -> dict[str, float | None]:
        """Return the numbers, JSON-serialisable; counts only where there are some."""
        return {name: value for name, value in vars(self).items() if value is not None or name in ("low", "high")}


def clopper_pearson(share: float, lesions: int) -> tuple[float, float]:
    """Compute the 95 % limits of a share that was seen in so many independent lesions."""
    hits = share * lesions
    low = float(beta.ppf(_TAIL, hits, lesions - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - _TAIL, hits + 1, lesions - hits)) if hits < lesions else 1.0
    return low, high


def share(of: NDArray[np.bool_], hits: NDArray[np.bool_], groups: pd.Series) -> Interval | None:
    """Compute which share of the images `of` bool[N] are `hits` bool[N], with exact limits.

    `groups` names the lesion of each of the N images. None unless all lesions of the images `of` have the same share.
    """
    by_lesion = pd.Series(hits[of], dtype=float).groupby(groups.to_numpy()[of]).mean()
    if by_lesion.empty or np.ptp(by_lesion) > 1e-12:
        return None
    value, lesions = float(hits[of].mean()), len(by_lesion)
    return Interval(value, *clopper_pearson(value, lesions), int(hits[of].sum()), int(of.sum()), lesions)


def auc(positive: NDArray[np.bool_], score: NDArray[np.floating], groups: pd.Series) -> Interval | None:
    """Give exact limits to an area under the ROC curve of 0 or 1; None for any other and where it is undefined.

    The area is the share of pairs that are ranked rightly, and of m lesions on the rarer side m disjoint pairs can be
    made.
    """
    if not 0 < positive.sum() < len(positive):
        return None
    own, other = score[positive], score[~positive]
    if own.min() <= other.max() and own.max() >= other.min():
        return None
    value, lesions = float(own.min() > other.max()), min(groups[positive].nunique(), groups[~positive].nunique())
    return Interval(value, *clopper_pearson(value, lesions), lesions=lesions)


def f1(own: NDArray[np.bool_], called: NDArray[np.bool_], groups: pd.Series) -> Interval | None:
    """Compute the F1 of a class, with exact limits, from its images and the images predicted as it, bool[N] each.

    None unless all lesions of both are alike. With J, the share of right ones among the images that are of the class or
    predicted as it, F1 is 2 J / (1 + J).
    """
    result = share(own | called, own & called, groups)
    if result is None or result.low is None or result.high is None:
        return None
    value, low, high = (2 * j / (1 + j) for j in (result.value, result.low, result.high))
    return Interval(value, low, high, lesions=result.lesions)


def widened(interval: Interval, parts: Iterable[tuple[float, Interval | None]]) -> Interval:
    """Widen a sum's bootstrap interval by the exact limits of those of its parts that no resample changed.

    `parts` are pairs of a weight in the sum and exact limits; None: resamples change that part.
    """
    assert interval.low is not None and interval.high is not None
    exact = [(weight, part) for weight, part in parts if part is not None]
    if not exact:
        return interval
    below = [interval.value - interval.low, *(weight * (part.value - (part.low or 0.0)) for weight, part in exact)]
    above = [interval.high - interval.value, *(weight * ((part.high or 0.0) - part.value) for weight, part in exact)]
    low, high = interval.value - math.hypot(*below), interval.value + math.hypot(*above)
    return Interval(interval.value, max(low, 0.0), min(high, 1.0))


def mended(
    result: dict[str, Interval],
    y_true: NDArray[np.integer],
    p: NDArray[np.floating],
    groups: pd.Series,
    classes: Classes,
) -> dict[str, Interval]:
    """Return the bootstrap intervals of `intervals.intervals`, with exact limits where no resample changes a figure."""
    calls, everything = metrics.predicted(p), np.ones(len(y_true), bool)
    own = {dx: y_true == label for dx, label in classes.labels.items()}
    predicted = {dx: calls == label for dx, label in classes.labels.items()}
    sensitivity = {dx: share(own[dx], own[dx] & predicted[dx], groups) for dx in own}
    areas = {dx: auc(own[dx], p[:, label], groups) for dx, label in classes.labels.items()}
    scores = {dx: f1(own[dx], predicted[dx], groups) for dx in own}
    single = {
        "accuracy": share(everything, calls == y_true, groups),
        "malignant_auc": auc(*metrics.malignancy(y_true, p, classes), groups),
        **{f"sensitivity_{dx}": interval for dx, interval in sensitivity.items()},
    }
    if classes.focus:
        single[classes.focus_metrics["sensitivity"]] = sensitivity[classes.focus]
        single[classes.focus_metrics["auc"]] = areas[classes.focus]
    present = [dx for dx in own if own[dx].any()]
    defined = [dx for dx in present if not own[dx].all()]
    sums = {
        "balanced_accuracy": [(1 / len(present), sensitivity[dx]) for dx in present],
        "macro_auc": [(1 / len(defined), areas[dx]) for dx in defined],
        "macro_f1": [(1 / len(own), scores[dx]) for dx in own],
        "weighted_f1": [(own[dx].mean(), scores[dx]) for dx in own],
    }
    result = {name: single.get(name) or interval for name, interval in result.items()}
    return {name: widened(interval, sums.get(name, ())) for name, interval in result.items()}
