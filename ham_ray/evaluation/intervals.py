"""95 % intervals by a bootstrap over lesions, stratified by class.

Images of one lesion resemble each other, so lesions and not images are drawn: the cluster bootstrap of Field and Welsh,
"Bootstrapping clustered data", J. R. Stat. Soc. B 69 (2007) 369-390, with percentile intervals (Efron and Tibshirani,
"An introduction to the bootstrap", 1993, ch. 13). Strata keep the rarest class (14 lesions a fold) in every resample.
Of a stratum's n lesions n - 1 are drawn and weigh n / (n - 1): n draws would give (n - 1) / n of the variance, and too
narrow an interval where lesions are few (Rao, Wu and Yue, Survey Methodology 18 (1992) 209-217).

A resample is not built: each lesion's multiplicity weighs its images, and every metric is computed from the weights of
many resamples at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ham_ray.data.classes import Classes
from ham_ray.errors import UserError, unknown_name
from ham_ray.evaluation import exact, metrics
from ham_ray.evaluation.exact import Interval
from ham_ray.evaluation.predictions import arrays, classes_of

METRICS = ("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy", "macro_auc")  # of all classes
RESAMPLES = 2000
SEED = 0
HOW = (
    f"percentile bootstrap over lesions, {RESAMPLES:,} resamples stratified by class, seed {SEED}; Clopper-Pearson on "
    "lesions where all resamples agree"
)
_BLOCK = 100  # resamples that are drawn class by class: the order of the random numbers, and so every figure's
_BYTES = 8 << 20  # of the weights of images that are computed with at once: 100 resamples of 10,000 images
_LEAST = 8  # resamples at once, however many images; a multiple of 4, by which BLAS adds up in the same order

Floats = NDArray[np.float64]


def metric_names(classes: Classes) -> tuple[str, ...]:
    """List the metrics that have intervals: `METRICS`, those of the class in focus and of malignancy, sensitivities."""
    malignant = ["malignant_auc"] if classes.malignant else []
    return (*METRICS, *classes.focus_metrics.values(), *malignant, *sensitivities(classes))


def sensitivities(classes: Classes) -> tuple[str, ...]:
    """Name the sensitivity of each class, in the order of labels."""
    return tuple(f"sensitivity_{dx}" for dx in classes.codes)


def intervals(
    frame: pd.DataFrame, resamples: int = RESAMPLES, seed: int = SEED, names: Sequence[str] = ()
) -> dict[str, Interval]:
    """Estimate the interval of each of `metric_names`, or of those named, for a PREDICTIONS table of one split.

    What is undefined is left out. Where no resample changes a figure, its limits are exact (see `exact`).

    Raises:
        UserError: see `metrics.evaluate`.
    """
    (y_true, p), classes = arrays(frame), classes_of(frame)
    points = _points(metrics.evaluate(y_true, p, classes), classes)
    draws = _bootstrap(y_true, p, frame["group_id"], resamples, seed, names or metric_names(classes), classes)
    drawn = {name: _interval(value, draws[name]) for name, value in points.items() if name in draws}
    return exact.mended(drawn, y_true, p, frame["group_id"], classes)


def paired_difference(
    a: pd.DataFrame, b: pd.DataFrame, metric: str, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """Estimate how much better `a` is than `b` in one metric; see `paired_differences`."""
    return paired_differences(a, b, [metric], resamples, seed)[metric]


def paired_differences(
    a: pd.DataFrame, b: pd.DataFrame, names: Sequence[str], resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Interval]:
    """Estimate how much better `a` is than `b`, on the same images and the same resamples of lesions.

    `names` are of `metric_names`. An interval without 0 is a difference beyond what another draw of
    lesions would explain. Where all resamples have the same difference, its limits are those of two unpaired values
    (Zou and Donner, Statistics in Medicine 27 (2008) 1693-1702): wider than paired ones could be.

    Raises:
        UserError: an unknown metric, one that is undefined here, or two tables of different images or labels.
    """
    classes = classes_of(a)
    known = metric_names(classes)
    for name in names:
        if name not in known:
            raise unknown_name("metric", name, known)
    b = _aligned(a, b)
    (y_true, p_a), (_, p_b) = arrays(a), arrays(b)
    points = [_points(metrics.evaluate(y_true, p, classes), classes) for p in (p_a, p_b)]
    for name in names:
        if name not in points[0]:
            raise UserError(f"{name} is undefined on these images: the class is absent")
    draws = [_bootstrap(y_true, p, a["group_id"], resamples, seed, names, classes) for p in (p_a, p_b)]
    result = {name: _interval(points[0][name] - points[1][name], draws[0][name] - draws[1][name]) for name in names}
    if all(it.value == 0 or it.low != it.high for it in result.values()):
        return result
    alone = [intervals(table, resamples, seed, names) for table in (a, b.assign(group_id=a["group_id"].to_numpy()))]
    unpaired = {name: _unpaired(alone[0][name], alone[1][name]) for name in names}
    return {name: it if it.value == 0 or it.low != it.high else unpaired[name] for name, it in result.items()}


def shares(
    frame: pd.DataFrame,
    asked: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Interval | None]:
    """Estimate shares of images with their intervals, by name; None for a share of no images.

    `asked` has by name the images bool[N] and the hits bool[N], of a PREDICTIONS table of N rows.
    """
    y_true = arrays(frame)[0]
    blocks: dict[str, list[Floats]] = {name: [] for name in asked}
    with threadpool_limits(1, "blas"):  # several threads would add up in an order that depends on the resamples at once
        for weights in resampled_weights(frame["group_id"], y_true, resamples, seed):
            for name, (of, hits) in asked.items():
                blocks[name].append(_divide(weights @ (of & hits), weights @ of))
    result = {name: np.concatenate(own) for name, own in blocks.items()}
    return {
        name: (exact.share(of, hits, frame["group_id"]) or _interval(hits[of].mean(), result[name]))
        if of.any()
        else None
        for name, (of, hits) in asked.items()
    }


def resampled_weights(groups: pd.Series, y_true: NDArray[np.integer], resamples: int, seed: int) -> Iterator[Floats]:
    """Draw how much each image weighs in each of `resamples`: blocks float64[<=100, N], of 8 MiB or 8 rows each.

    `groups` names the lesion of each of the N images. A group belongs to the stratum of its most frequent class:
    images with equal pixels and different labels share a group.
    """
    codes, names = pd.factorize(groups)
    count = int(y_true.max()) + 1
    votes = np.bincount(codes * count + y_true, minlength=len(names) * count)
    stratum = votes.reshape(-1, count).argmax(axis=1)
    strata = [np.flatnonzero(stratum == label) for label in np.unique(stratum)]
    scale = np.empty(len(names))  # n / (n - 1)
    for members in strata:
        scale[members] = len(members) / max(1, len(members) - 1)
    at_once = max(_LEAST, min(_BLOCK, _BYTES // (8 * len(codes)) // 4 * 4))
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        times = _drawn(rng, strata, min(_BLOCK, resamples - start), at_once)
        for row in range(0, len(times), at_once):
            yield (times[row : row + at_once] * scale)[:, codes]


class WeightedMetrics:
    """Compute `metric_names` of one model's predictions, or those named, from how much each image weighs.

    What does not depend on the weights is computed once: the cell of the confusion matrix that each image is in, and
    how the images rank. Equal to the scikit-learn functions with `sample_weight` (classes of weight 0 count as absent).
    """

    def __init__(
        self, y_true: NDArray[np.integer], p: NDArray[np.floating], classes: Classes, names: Sequence[str] = ()
    ) -> None:
        self.classes, self.cells = classes, _cells(y_true, p)
        areas = {name for name in names or metric_names(classes) if name.endswith("auc")}  # which take most of the time
        focused = {classes.focus_label} if classes.focus_metrics.get("auc") in areas else set()
        ranked = range(len(classes)) if "macro_auc" in areas else focused
        self.ranks = {label: _Ranks.of(y_true == label, p[:, label]) for label in ranked}
        if "malignant_auc" in areas:
            self.malignancy = _Ranks.of(*metrics.malignancy(y_true, p, classes))
        self.areas = areas

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        """For every row of `weights` float[B, N] each metric, float64[B]; NaN where undefined."""
        result, sensitivity = _by_tables(weights @ self.cells, len(self.classes))
        result |= dict(zip(sensitivities(self.classes), sensitivity.T, strict=True))
        if self.classes.focus:
            own = result[f"sensitivity_{self.classes.focus}"]
            result[self.classes.focus_metrics["sensitivity"]] = own
        areas = {label: ranks.area(weights) for label, ranks in self.ranks.items()}
        if "macro_auc" in self.areas:
            result["macro_auc"] = _mean_of_defined(np.stack([*areas.values()], axis=1))
        if self.classes.focus_label in areas:
            result[self.classes.focus_metrics["auc"]] = areas[self.classes.focus_label]
        if "malignant_auc" in self.areas:
            result["malignant_auc"] = self.malignancy.area(weights)
        return result


def by_predicted(
    y_true: NDArray[np.integer], p: NDArray[np.floating], weights: Floats
) -> tuple[dict[str, Floats], Floats]:
    """Compute those of `METRICS` that depend on the predicted classes alone, and the sensitivities float64[B, K]."""
    return _by_tables(weights @ _cells(y_true, p), p.shape[1])


def _cells(y_true: NDArray[np.integer], p: NDArray[np.floating]) -> Floats:
    """The cell of the confusion matrix that each image is in, one-hot: float64[N, K * K]."""
    size = p.shape[1]
    return np.eye(size * size)[y_true * size + metrics.predicted(p)]


def _by_tables(counts: Floats, size: int) -> tuple[dict[str, Floats], Floats]:
    """What `by_predicted` computes, of confusion matrices float64[B, K * K]."""
    table = counts.reshape(-1, size, size)
    hits, support, predicted = np.einsum("bii->bi", table), table.sum(axis=2), table.sum(axis=1)
    sensitivity = _divide(hits, support)
    f1 = np.nan_to_num(_divide(2 * hits, support + predicted))
    total = support.sum(axis=1)
    of_all = {
        "accuracy": hits.sum(axis=1) / total,
        "macro_f1": f1.mean(axis=1),
        "weighted_f1": (f1 * support).sum(axis=1) / total,
        "balanced_accuracy": _mean_of_defined(sensitivity),
    }
    return of_all, sensitivity


def _points(evaluation: dict[str, Any], classes: Classes) -> dict[str, float]:
    """Select the defined values of `metric_names` from what `metrics.evaluate` returns."""
    own = {f"sensitivity_{dx}": result["sensitivity"] for dx, result in evaluation["per_class"].items()}
    values = {name: own[name] if name in own else evaluation[name] for name in metric_names(classes)}
    return {name: value for name, value in values.items() if value is not None}


def _bootstrap(
    y_true: NDArray[np.integer],
    p: NDArray[np.floating],
    groups: pd.Series,
    resamples: int,
    seed: int,
    names: Sequence[str],
    classes: Classes,
) -> dict[str, Floats]:
    weigh = WeightedMetrics(y_true, p, classes, names)
    blocks = [weigh(weights) for weights in resampled_weights(groups, y_true, resamples, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in names}


def _drawn(rng: np.random.Generator, strata: list[NDArray[np.intp]], count: int, at_once: int) -> NDArray:
    """Draw how often each group comes in each of `count` resamples, in the smallest integers that hold it: [count, G].

    Of a stratum's n groups n - 1 are drawn with replacement. The random numbers do not depend on `at_once`, the
    resamples that are drawn together.
    """
    times = np.zeros((count, total := sum(map(len, strata))), np.min_scalar_type(total))
    for members in strata:
        size, draws = len(members), max(1, len(members) - 1)
        for start in range(0, count, at_once):
            rows = min(at_once, count - start)
            drawn = rng.integers(0, size, (rows, draws)) + size * np.arange(rows)[:, None]
            own = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
            times[start : start + rows, members] = own
    return times


class _Ranks(NamedTuple):
    """How the images that are not of a class rank by their score, and where those of the class stand among them."""

    positive: NDArray[np.intp]  # the images of the class
    negative: NDArray[np.intp]  # the others, by ascending score
    lower: NDArray[np.intp]  # for each of the class: how many of the others have a lower score
    upto: NDArray[np.intp]  # the same with those of an equal score

    @classmethod
    def of(cls, positive: NDArray[np.bool_], score: NDArray[np.floating]) -> _Ranks:
        order = np.argsort(score[~positive], kind="stable")
        ranked = score[~positive][order]
        lower, upto = (np.searchsorted(ranked, score[positive], side=side) for side in ("left", "right"))
        return cls(np.flatnonzero(positive), np.flatnonzero(~positive)[order], lower, upto)

    def area(self, weights: Floats) -> Floats:
        """The AUC of the class against the others for every row of weights, float64[B]; NaN where one is absent.

        The Mann-Whitney form: the weight of (positive, negative) pairs ranked rightly, ties counting one half.
        """
        below = np.zeros((len(weights), len(self.negative) + 1))  # below[:, k]: weight of the k lowest negatives
        np.cumsum(weights[:, self.negative], axis=1, out=below[:, 1:])
        weight = weights[:, self.positive]
        pairs = below[:, self.lower]  # in place from here: these arrays are the largest
        pairs += below[:, self.upto]
        pairs *= weight
        return _divide(pairs.sum(axis=1) / 2, weight.sum(axis=1) * below[:, -1])


def _divide(part: Floats, whole: Floats) -> Floats:
    """Divide, with NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _mean_of_defined(values: Floats) -> Floats:
    """Compute the mean of each row without its NaNs; NaN for a row of nothing else."""
    return _divide(np.nansum(values, axis=1), np.isfinite(values).sum(axis=1))


def _interval(value: float, draws: Floats) -> Interval:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _unpaired(a: Interval, b: Interval) -> Interval:
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    value = a.value - b.value
    return Interval(
        value, value - np.hypot(a.value - a.low, b.high - b.value), value + np.hypot(a.high - a.value, b.value - b.low)
    )


def _aligned(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `b` in the order of `a`'s images; refuse tables of different images or labels."""
    different = sorted(set(a["image_id"]) ^ set(b["image_id"]))
    if different:
        raise UserError(f"only the same images can be compared; {len(different)} are in one table: {different[:5]}")
    aligned = b.set_index("image_id").loc[a["image_id"]].reset_index()
    relabelled = a["image_id"].to_numpy()[a["y_true"].to_numpy() != aligned["y_true"].to_numpy()]
    if len(relabelled):
        raise UserError(f"{len(relabelled)} images have different labels in the two tables: {relabelled[:5].tolist()}")
    return aligned
