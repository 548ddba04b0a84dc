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
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
_BLOCK = 100  # resamples at once: 8 MB of weights for 10,000 images

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
    alone = [intervals(table, resamples, seed) for table in (a, b.assign(group_id=a["group_id"].to_numpy()))]
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
    weights = np.concatenate([*resampled_weights(frame["group_id"], y_true, resamples, seed)])
    result = {name: _divide(weights @ (of & hits), weights @ of) for name, (of, hits) in asked.items()}
    return {
        name: (exact.share(of, hits, frame["group_id"]) or _interval(hits[of].mean(), result[name]))
        if of.any()
        else None
        for name, (of, hits) in asked.items()
    }


def resampled_weights(groups: pd.Series, y_true: NDArray[np.integer], resamples: int, seed: int) -> Iterator[Floats]:
    """Draw how much each image weighs in each resample: blocks float64[<=100, N] of `resamples` rows in all.

    `groups` names the lesion of each of the N images. A group belongs to the stratum of its most frequent class:
    images with equal pixels and different labels share a group.
    """
    codes, names = pd.factorize(groups)
    count = int(y_true.max()) + 1
    votes = np.bincount(codes * count + y_true, minlength=len(names) * count)
    stratum = votes.reshape(-1, count).argmax(axis=1)
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        multiplicity = np.zeros((rows, len(names)))
        for label in np.unique(stratum):
            members = np.flatnonzero(stratum == label)
            multiplicity[:, members] = _multiplicities(rng, rows, len(members))
        yield multiplicity[:, codes]


def weighted_metrics(
    y_true: NDArray[np.integer], p: NDArray[np.floating], weights: Floats, classes: Classes
) -> dict[str, Floats]:
    """Compute `metric_names` for every row of `weights` float[B, N], each float64[B]; NaN where undefined.

    Equal to the scikit-learn functions with `sample_weight` (classes of weight 0 count as absent).
    """
    aucs = _weighted_aucs(y_true, p, weights)
    result = {**_by_predicted(y_true, p, weights, classes), "macro_auc": _mean_of_defined(aucs)}
    if classes.focus_label is not None:
        result[classes.focus_metrics["auc"]] = aucs[:, classes.focus_label]
    if classes.malignant:
        result["malignant_auc"] = _weighted_auc(*metrics.malignancy(y_true, p, classes), weights)
    return result


def by_predicted(
    y_true: NDArray[np.integer], p: NDArray[np.floating], weights: Floats
) -> tuple[dict[str, Floats], Floats]:
    """Compute those of `METRICS` that depend on the predicted classes alone, and the sensitivities float64[B, K]."""
    size = p.shape[1]
    cells = np.eye(size * size)[y_true * size + metrics.predicted(p)]
    table = (weights @ cells).reshape(-1, size, size)
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


def _by_predicted(
    y_true: NDArray[np.integer], p: NDArray[np.floating], weights: Floats, classes: Classes
) -> dict[str, Floats]:
    of_all, sensitivity = by_predicted(y_true, p, weights)
    own = dict(zip(sensitivities(classes), sensitivity.T, strict=True))
    focus = {classes.focus_metrics["sensitivity"]: own[f"sensitivity_{classes.focus}"]} if classes.focus else {}
    return {**of_all, **focus, **own}


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
    areas = {name for name in names if name.endswith("auc")}  # which take most of the time
    focus = {*classes.focus_metrics.values()}

    def weigh(weights: Floats) -> dict[str, Floats]:
        if areas - focus:
            return weighted_metrics(y_true, p, weights, classes)
        label = classes.focus_label
        area = {name: _weighted_auc(y_true == label, p[:, label], weights) for name in areas}
        return {**_by_predicted(y_true, p, weights, classes), **area}

    blocks = [weigh(weights) for weights in resampled_weights(groups, y_true, resamples, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in names}


def _multiplicities(rng: np.random.Generator, count: int, size: int) -> Floats:
    """Draw how often each of `size` groups comes in `size` - 1 draws with replacement, scaled to the sum `size`."""
    draws = max(1, size - 1)
    drawn = rng.integers(0, size, (count, draws)) + size * np.arange(count)[:, None]
    times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
    return times.astype(np.float64) * (size / draws)


def _weighted_aucs(y_true: NDArray[np.integer], p: NDArray[np.floating], weights: Floats) -> Floats:
    """Compute each class's one-versus-rest AUC for every row of weights, float64[B, K]; NaN for an absent class.

    This is the Mann-Whitney form: the weight of (positive, negative) pairs ranked rightly, ties counting one half.
    """
    columns = [_weighted_auc(y_true == label, p[:, label], weights) for label in range(p.shape[1])]
    return np.stack(columns, axis=1)


def _weighted_auc(positive: NDArray[np.bool_], score: NDArray[np.floating], weights: Floats) -> Floats:
    order = np.argsort(score[~positive], kind="stable")
    ranked = score[~positive][order]
    below = np.zeros((len(weights), len(ranked) + 1))  # below[:, k]: weight of the k lowest negatives
    np.cumsum(weights[:, ~positive][:, order], axis=1, out=below[:, 1:])
    lower = below[:, np.searchsorted(ranked, score[positive], side="left")]
    upto = below[:, np.searchsorted(ranked, score[positive], side="right")]
    weight = weights[:, positive]
    pairs = (weight * (lower + upto)).sum(axis=1) / 2
    return _divide(pairs, weight.sum(axis=1) * below[:, -1])


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
