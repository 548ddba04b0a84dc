"""What must be printed beside a model's figures wherever they are shown: sentences that follow from its predictions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ham_ray.evaluation import metrics
from ham_ray.evaluation.intervals import paired_differences
from ham_ray.evaluation.predictions import arrays, classes_of

FEW = 30  # images below which figures say next to nothing
ONE_CLASS = 0.85  # the most frequent class is 67 % of HAM10000: a model that has learned anything predicts it less
_WORDS = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}  # what a trivial baseline is beaten in


def cautions(test: pd.DataFrame, trivial: Mapping[str, pd.DataFrame]) -> list[str]:
    """Write the sentences for the reported rows of a PREDICTIONS table.

    `trivial` are the tables of trivial baselines, by name. Without any, the baseline predicts the most frequent class.
    """
    trivial = trivial or {"predicting the most frequent class for all images": most(test)}
    return [text for text in (absent(test), one_class(test), not_better(test, trivial)) if text]


def absent(test: pd.DataFrame) -> str | None:
    """Say which classes have no image, and what that does to the metrics; None where each class has one."""
    classes, present = classes_of(test), {*test["y_true"]}
    missing = [dx for dx, label in classes.labels.items() if label not in present]
    if not missing:
        return None
    return (
        f"no image here of {', '.join(map(classes.titled, missing))}: balanced accuracy and macro-AUC are means of the "
        f"other {len(classes) - len(missing)} classes, macro-F1 counts a class without images as 0"
    )


def one_class(test: pd.DataFrame) -> str | None:
    """Write the sentence for a model that predicts one class for more than 85 % of the images; None for any other.

    None too where so many images are of that class, or where there are fewer than `FEW`.
    """
    (truth, p), classes = arrays(test), classes_of(test)
    calls = np.bincount(metrics.predicted(p), minlength=len(classes)) / len(p)
    label = int(calls.argmax())
    own = float((truth == label).mean())
    if len(p) < FEW or calls[label] <= ONE_CLASS or own > ONE_CLASS:
        return None
    name = classes.titled(classes.codes[label])
    return f"predicts {100 * calls[label]:.0f} % of these images as {name}; {100 * own:.0f} % are"


def not_better(test: pd.DataFrame, trivial: Mapping[str, pd.DataFrame]) -> str | None:
    """Write the sentence for a model that a trivial baseline equals; None for a model that beats all of them.

    A baseline equals the model where the interval of their paired difference in balanced accuracy or macro-F1, on the
    images of both, reaches 0 or below.
    """
    said = []
    for name, table in trivial.items():
        own = test[test["image_id"].isin(table["image_id"])]
        if own.empty:
            continue
        other = table[table["image_id"].isin(own["image_id"])]
        result = paired_differences(own, other, [*_WORDS])
        lost = [
            f"{_WORDS[metric]} {it.value:+.3f} ({it.low:+.3f} to {it.high:+.3f})"
            for metric, it in result.items()
            if it.low is None or it.low <= 0
        ]
        said += [f"{name}: {', '.join(lost)}"] if lost else []
    return f"not better, beyond chance, than {'; than '.join(said)}" if said else None


def most(test: pd.DataFrame) -> pd.DataFrame:
    """Return the same rows, each predicted as the class that most of them are."""
    most_frequent = int(np.bincount(test["y_true"].astype(int)).argmax())
    return test.assign(
        **{name: np.float32(label == most_frequent) for label, name in enumerate(classes_of(test).probabilities)}
    )
