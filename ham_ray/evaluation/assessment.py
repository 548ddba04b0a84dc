"""One model's PREDICTIONS as a reviewer wants them: melanoma, calibration, lesions, subgroups, differences, errors.

Validation images choose thresholds and temperature; all figures are of the images to be reported (test or new).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from ham_ray.diagnoses import CODES, PROBABILITIES
from ham_ray.errors import UserError
from ham_ray.evaluation import calibration, intervals, metrics, thresholds
from ham_ray.evaluation.intervals import Interval
from ham_ray.evaluation.isic import CONTROL
from ham_ray.evaluation.predictions import FACTS, NEW, arrays, of_split

LEAST = 10  # images of a class below which nothing is said of it in a subgroup
AGES = {"under 40": (0, 40), "40 to 59": (40, 60), "60 and over": (60, 200)}  # years, the upper bound outside
GROUPS = {"age": "age", "sex": "sex", "localization": "site", "dx_type": "how the label was made"}


@dataclass(frozen=True)
class Subgroup:
    """Some of the images: which fact they share, how many, and figures with intervals; None where too few."""

    fact: str
    value: str
    images: int
    lesions: int
    melanomas: int
    accuracy: Interval
    balanced_accuracy: Interval | None
    melanoma_sensitivity: Interval | None
    melanoma_auc: float | None


@dataclass(frozen=True)
class Calibrated:
    """How far probabilities can be taken at their word, before and after the temperature fitted on validation."""

    temperature: float
    before: dict[str, float]
    after: dict[str, float]


@dataclass(frozen=True)
class Assessment:
    """All that is said of one model. `images` are the rows reported, and all figures are of them.

    `metrics` and `lesions` are those of `metrics.evaluate`, by image and by lesion; `melanoma` is by the thresholds
    chosen on validation images, and empty without such.
    """

    images: pd.DataFrame
    metrics: dict[str, Any]
    intervals: dict[str, Interval]
    melanoma: dict[str, thresholds.Rates]
    calibration: Calibrated | None
    lesions: dict[str, Any]
    subgroups: list[Subgroup]

    def facts(self) -> dict[str, Any]:
        """Everything but the rows, JSON-serialisable."""
        return {
            **self.metrics,
            "intervals": {name: vars(found) for name, found in self.intervals.items()},
            "melanoma": {name: rates._asdict() for name, rates in self.melanoma.items()},
            "calibration": vars(self.calibration) if self.calibration else None,
            "lesions": {name: self.lesions[name] for name in ("n", *intervals.METRICS)},
            "subgroups": [_plain(group) for group in self.subgroups],
        }


@dataclass(frozen=True)
class McNemar:
    """Images that only one of two models gets right, and the exact two-sided p of that split (McNemar 1947)."""

    only_first: int
    only_second: int
    p_value: float


def assess(frame: pd.DataFrame) -> Assessment:
    """Of a PREDICTIONS table; some seconds, most of them for intervals.

    Raises:
        UserError: no image of it may be reported.
    """
    test = reported(frame)
    return Assessment(
        images=test,
        metrics=metrics.evaluate(*arrays(test)),
        intervals=intervals.intervals(test),
        melanoma=operating_points(frame),
        calibration=calibrated(frame),
        lesions=metrics.evaluate(*arrays(by_lesion(test))),
        subgroups=subgroups(test),
    )


def reported(frame: pd.DataFrame) -> pd.DataFrame:
    """The labelled rows that may be reported: test images, or else new ones. Never what a model has learned from.

    The challenge's control row is left out, as its scorer does.

    Raises:
        UserError: there are none; with what there is.
    """
    labelled = frame[frame["y_true"].notna() & (frame["image_id"] != CONTROL)]
    for split in ("test", NEW):
        if len(found := of_split(labelled, split)):
            return found.astype({"y_true": "int32"})
    counts = ", ".join(f"{count:,} {split}" for split, count in frame["split"].value_counts().items())
    raise UserError(
        f"nothing to report: no labelled image that the model has neither learned from nor was chosen by; there are "
        f"{counts}, of which {len(labelled):,} labelled"
    )


def by_lesion(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a lesion, the mean probabilities of its images. `image_id` is then the lesion's first image.

    A group whose images have different labels is left out: nobody can say what it is.
    """
    means = frame.groupby("group_id", sort=False)[list(PROBABILITIES)].mean()
    one_label = frame.groupby("group_id", sort=False)["y_true"].nunique() == 1
    first = frame.drop_duplicates("group_id").set_index("group_id", drop=False)
    first = first.assign(**{name: means[name] for name in PROBABILITIES})
    return first[one_label].reset_index(drop=True)


def operating_points(frame: pd.DataFrame) -> dict[str, thresholds.Rates]:
    """Melanoma by thresholds chosen on the validation images; empty without such."""
    validation = of_split(frame[frame["y_true"].notna()], "validation")
    if validation.empty:
        return {}
    return thresholds.apply(*arrays(reported(frame)), thresholds.choose(*arrays(validation)))


def calibrated(frame: pd.DataFrame) -> Calibrated | None:
    """Of the reported images; None without validation images to fit the temperature on."""
    validation = of_split(frame[frame["y_true"].notna()], "validation")
    if validation.empty:
        return None
    found = calibration.temperature(*arrays(validation))
    truth, p = arrays(reported(frame))
    return Calibrated(found, _reliability(truth, p), _reliability(truth, calibration.warmed(p, found)))


def _reliability(truth: np.ndarray, p: np.ndarray) -> dict[str, float]:
    return {"ece": metrics.ece(truth, p), "brier": metrics.brier(truth, p), "nll": metrics.nll(truth, p)}


def subgroups(test: pd.DataFrame) -> list[Subgroup]:
    """By age, sex, site and how the label was made, as far as they are known of these rows."""
    return [
        _subgroup(GROUPS[fact], value, rows)
        for fact in FACTS
        for value, rows in _parts(test, fact)
        if len(rows) >= LEAST
    ]


def _parts(test: pd.DataFrame, fact: str) -> Iterator[tuple[str, pd.DataFrame]]:
    known = test[test[fact].notna()]
    if fact == "age":
        ages = pd.to_numeric(known["age"])
        yield from ((name, known[(ages >= low) & (ages < high)]) for name, (low, high) in AGES.items())
    else:
        yield from ((str(value), rows) for value, rows in known.groupby(fact, sort=True))


def _subgroup(fact: str, value: str, rows: pd.DataFrame) -> Subgroup:
    truth, p = arrays(rows)
    found = intervals.intervals(rows)
    melanomas = int((truth == thresholds.MELANOMA).sum())
    others = len(truth) - melanomas
    counts = np.bincount(truth, minlength=len(CODES))
    return Subgroup(
        fact=fact,
        value=value,
        images=len(rows),
        lesions=rows["group_id"].nunique(),
        melanomas=melanomas,
        accuracy=found["accuracy"],
        balanced_accuracy=found["balanced_accuracy"]
        if counts.min(where=counts > 0, initial=len(rows)) >= LEAST
        else None,
        melanoma_sensitivity=found.get("melanoma_sensitivity") if melanomas >= LEAST else None,
        melanoma_auc=metrics.class_auc(truth, p, thresholds.MELANOMA) if min(melanomas, others) >= LEAST else None,
    )


def confident_errors(test: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """The wrongly called images with the greatest probability of the wrong class: image_id, dx, called, p, p_true."""
    truth, p = arrays(test)
    called = metrics.predicted(p)
    rows = np.arange(len(p))
    found = pd.DataFrame(
        {
            "image_id": test["image_id"],
            "dx": [CODES[label] for label in truth],
            "called": [CODES[label] for label in called],
            "p": p[rows, called],
            "p_true": p[rows, truth],
        }
    )
    return found[called != truth].sort_values(["p", "image_id"], ascending=[False, True]).head(most)


def mcnemar(first: pd.DataFrame, second: pd.DataFrame) -> McNemar:
    """Of two tables of the same images, matched by image_id; images of one lesion are taken as independent."""
    right = [
        pd.Series(metrics.predicted(p) == truth, table["image_id"])
        for table in (first, second)
        for truth, p in (arrays(table),)
    ]
    a, b = right[0], right[1].loc[right[0].index]
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for making several comparisons (Holm 1979), in the order given."""
    order = np.argsort(p_values)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = running
    return adjusted


def _plain(group: Subgroup) -> dict[str, Any]:
    return {name: vars(value) if isinstance(value, Interval) else value for name, value in vars(group).items()}
