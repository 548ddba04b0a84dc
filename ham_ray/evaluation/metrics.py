"""Metrics of predictions of K classes: pure functions on `y_true` int[N] and `p` float[N, K], by scikit-learn.

Labels and probability columns are in the order of the classes. The predicted class is the most probable one; of tied
classes the first. A value nothing can be said about (sensitivity to an absent class) is None, never 0 and never NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    multilabel_confusion_matrix,
    recall_score,
    roc_auc_score,
)

from ham_ray.data.classes import Classes
from ham_ray.errors import UserError

SUM_TOLERANCE = 1e-3  # half-precision softmax sums to 1 within this
ECE_BINS = 15


def evaluate(y_true: NDArray[np.integer], p: NDArray[np.floating], classes: Classes) -> dict[str, Any]:
    """Compute every metric of the predictions, as one JSON-serialisable dictionary.

    Sensitivity and AUC of the class in focus are named after it, such as `melanoma_auc`; left out where there is none,
    as `malignant_auc` is where nobody says which classes are malignant.

    Raises:
        UserError: no rows, shapes that do not fit, labels of no class, or probabilities with `faults`.
    """
    check(y_true, p, len(classes))
    of_classes = per_class(y_true, p, classes)
    focus = of_classes[classes.focus] if classes.focus else {}
    return {
        "n": len(y_true),
        "accuracy": accuracy(y_true, p),
        "macro_f1": macro_f1(y_true, p),
        "weighted_f1": weighted_f1(y_true, p),
        "balanced_accuracy": balanced_accuracy(y_true, p),
        "macro_auc": macro_auc([one["auc"] for one in of_classes.values()]),
        **{own: focus[name] for name, own in classes.focus_metrics.items()},
        **({"malignant_auc": malignant_auc(y_true, p, classes)} if classes.malignant else {}),
        "nll": nll(y_true, p),
        "brier": brier(y_true, p),
        "ece": ece(y_true, p),
        "class_ece": class_ece(y_true, p, classes),
        "absent_classes": [dx for dx, label in classes.labels.items() if label not in y_true],
        "per_class": of_classes,
        "confusion": confusion(y_true, p).tolist(),
    }


def check(y_true: NDArray[np.integer], p: NDArray[np.floating], count: int) -> None:
    """Refuse what cannot be evaluated as predictions of `count` classes, with the first offending rows.

    Raises:
        UserError: see `evaluate`.
    """
    if p.shape != (len(y_true), count) or not len(y_true):
        raise UserError(
            f"cannot evaluate {len(y_true)} labels with probabilities of shape {p.shape}; expected (N, {count}), N > 0"
        )
    if wrong := sorted(set(np.asarray(y_true).tolist()) - {*range(count)}):
        raise UserError(f"labels must be 0–{count - 1}, got {wrong[:5]}")
    for fault, rows in faults(p).items():
        raise UserError(f"probabilities {fault} in rows {np.flatnonzero(rows)[:5].tolist()} ({rows.sum()} in all)")


def faults(p: NDArray[np.floating]) -> dict[str, NDArray[np.bool_]]:
    """Check the probabilities p[N, K]: return which rows (bool[N]) have which fault; empty where there is none."""
    finite = np.isfinite(p).all(axis=1)
    inside = ((p >= 0) & (p <= 1)).all(axis=1)
    # float64, so that the sum of float32 columns does not add its own rounding
    complete = np.abs(p.sum(axis=1, dtype=np.float64) - 1) <= SUM_TOLERANCE
    result = {
        "are not finite": ~finite,
        "lie outside [0, 1]": finite & ~inside,
        "do not sum to 1": finite & inside & ~complete,
    }
    return {fault: rows for fault, rows in result.items() if rows.any()}


def predicted(p: NDArray[np.floating]) -> NDArray[np.integer]:
    """Return the most probable class of each row, int[N]; of tied classes the first."""
    return p.argmax(axis=1)


def accuracy(y_true: NDArray[np.integer], p: NDArray[np.floating]) -> float:
    """Compute the share of images whose most probable class is the true one."""
    return float(accuracy_score(y_true, predicted(p)))


def macro_f1(y_true: NDArray[np.integer], p: NDArray[np.floating]) -> float:
    """Compute the mean F1 of all classes; one neither present nor predicted counts as 0, so absent classes lower it."""
    return float(f1_score(y_true, predicted(p), labels=range(p.shape[1]), average="macro", zero_division=0))


def weighted_f1(y_true: NDArray[np.integer], p: NDArray[np.floating]) -> float:
    """Compute the mean F1, each class weighted by its number of images."""
    return float(f1_score(y_true, predicted(p), labels=range(p.shape[1]), average="weighted", zero_division=0))


def balanced_accuracy(y_true: NDArray[np.integer], p: NDArray[np.floating]) -> float:
    """Compute the mean sensitivity of the classes present: the score of ISIC 2018 task 3."""
    return float(recall_score(y_true, predicted(p), labels=np.unique(y_true), average="macro"))


def class_auc(y_true: NDArray[np.integer], p: NDArray[np.floating], label: int) -> float | None:
    """Compute the area under the ROC curve of one class against the rest; None unless both are present."""
    return _auc(y_true == label, p[:, label])


def average_precision(y_true: NDArray[np.integer], p: NDArray[np.floating], label: int) -> float | None:
    """Compute the area under the precision-recall curve of one class, without interpolation.

    None unless the class and others are present.
    """
    positive = y_true == label
    return float(average_precision_score(positive, p[:, label])) if 0 < positive.sum() < len(positive) else None


def macro_auc(aucs: Iterable[float | None]) -> float | None:
    """Compute the mean of the classes' one-versus-rest AUCs; those left out are `absent_classes` in `evaluate`."""
    defined = [auc for auc in aucs if auc is not None]
    return float(np.mean(defined)) if defined else None


def malignant_auc(y_true: NDArray[np.integer], p: NDArray[np.floating], classes: Classes) -> float | None:
    """Compute the AUC of malignant against benign classes by the summed probability of the malignant ones."""
    return _auc(*malignancy(y_true, p, classes))


def malignancy(
    y_true: NDArray[np.integer], p: NDArray[np.floating], classes: Classes
) -> tuple[NDArray[np.bool_], NDArray[np.floating]]:
    """Say which images are of a malignant class, bool[N], and sum the probabilities of these classes, float[N]."""
    return np.isin(y_true, classes.malignant), p[:, classes.malignant].sum(axis=1)


def per_class(y_true: NDArray[np.integer], p: NDArray[np.floating], classes: Classes) -> dict[str, dict[str, Any]]:
    """Compute the metrics of each class, by dx; None where one is undefined.

    They are `n` images, `sensitivity`, `specificity`, `ppv` (precision), `f1`, one-versus-rest `auc` and `ap` (average
    precision).
    """
    tables = multilabel_confusion_matrix(y_true, predicted(p), labels=range(p.shape[1]))
    result = {}
    for label, dx in enumerate(classes.codes):
        (tn, fp), (fn, tp) = tables[label].tolist()
        result[dx] = {
            "n": tp + fn,
            "sensitivity": _ratio(tp, tp + fn),
            "specificity": _ratio(tn, tn + fp),
            "ppv": _ratio(tp, tp + fp),
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
            "auc": class_auc(y_true, p, label),
            "ap": average_precision(y_true, p, label),
        }
    return result


def confusion(y_true: NDArray[np.integer], p: NDArray[np.floating]) -> NDArray[np.integer]:
    """Count images, int[K, K]: rows are true classes, columns predicted ones."""
    return confusion_matrix(y_true, predicted(p), labels=range(p.shape[1]))


def nll(y_true: NDArray[np.integer], p: NDArray[np.floating]) -> float:
    """Compute the mean negative log-likelihood in nats; a probability of 0 counts as 2.2e-16 (36 nats)."""
    exact = p.astype(np.float64)
    return float(log_loss(y_true, exact / exact.sum(axis=1, keepdims=True), labels=range(p.shape[1])))


def ece(y_true: NDArray[np.integer], p: NDArray[np.floating], bins: int = ECE_BINS) -> float:
    """Compute the expected calibration error: mean |accuracy - confidence| over bins, weighted by their size.

    Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 5. Bins of confidence are of equal width,
    open below and closed above.
    """
    return _binned_gap(predicted(p) == y_true, p.max(axis=1), bins)


def brier(y_true: NDArray[np.integer], p: NDArray[np.floating]) -> float:
    """Compute the mean squared distance of probabilities from truth, summed over classes: 0 to 2 (Brier 1950)."""
    return float(np.mean(np.sum((p.astype(np.float64) - np.eye(p.shape[1])[y_true]) ** 2, axis=1)))


def class_ece(
    y_true: NDArray[np.integer], p: NDArray[np.floating], classes: Classes, bins: int = ECE_BINS
) -> dict[str, float]:
    """Compute each class's calibration error, by dx: mean |share - probability| over bins, weighted by their size.

    Kull et al., "Beyond temperature scaling", NeurIPS 2019, eq. 3, before the mean over classes. Bins of the class's
    probability are of equal width; the share is that of the class in a bin.
    """
    return {dx: _binned_gap(y_true == label, p[:, label], bins) for dx, label in classes.labels.items()}


def bin_of(confidence: NDArray[np.floating], bins: int) -> NDArray[np.integer]:
    """Return the equal-width bin of each confidence, int[N] in 0 to bins - 1; bins are open below and closed above."""
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def _binned_gap(hits: NDArray[np.bool_], probability: NDArray[np.floating], bins: int) -> float:
    confidence = probability.astype(np.float64)
    gaps = np.bincount(bin_of(confidence, bins), weights=hits - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(hits))


def _auc(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> float | None:
    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
