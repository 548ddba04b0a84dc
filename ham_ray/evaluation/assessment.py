"""One model's PREDICTIONS as a reviewer wants them: thresholds, calibration, lesions, subgroups, differences, errors.

Validation images choose thresholds and temperature; all figures are of the images to be reported (test or new).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from ham_ray.data.classes import Classes
from ham_ray.data.datasets import UNPUBLISHED
from ham_ray.errors import UserError
from ham_ray.evaluation import calibration, intervals, metrics, thresholds
from ham_ray.evaluation.exact import Interval
from ham_ray.evaluation.predictions import FACTS, NEW, arrays, call_columns, classes_of, of_split

LEAST = 10  # images of a class below which nothing is said of it in a subgroup
AGES = {"under 40": (0, 40), "40 to 59": (40, 60), "60 and over": (60, 200)}  # years, the upper bound outside
_Part = TypeVar("_Part")
GROUPS = {"age": "age", "sex": "sex", "localization": "site", "dx_type": "how the label was made"}


@dataclass(frozen=True)
class Subgroup:
    """Some of the images: which fact they share, how many, and figures with intervals; None where too few.

    `focused` counts the images of the class in focus.
    """

    fact: str
    value: str
    images: int
    lesions: int
    focused: int
    accuracy: Interval | None
    balanced_accuracy: Interval | None
    focus_sensitivity: Interval | None
    focus_auc: Interval | None


class Point(NamedTuple):
    """An operating point: a threshold of the class in focus, its sensitivity and its specificity.

    The threshold is None where the table has flags alone; a rate of a class without images is None.
    """

    threshold: float | None
    sensitivity: Interval | None
    specificity: Interval | None


class Rates(NamedTuple):
    """Specificity and precision (ppv) of a class; None where there is nothing to count."""

    specificity: Interval | None
    ppv: Interval | None


@dataclass(frozen=True)
class Assessment:
    """All that is said of one model. `images` are the rows reported, and all figures are of them.

    `metrics` is that of `metrics.evaluate`, by image; `rates` are by class those shares that `intervals` has not;
    `lesions` counts lesions, `by_lesion` are intervals of the same metrics by lesion; `points` is by the thresholds of
    the class in focus chosen on validation images, empty without such; `calibration` has probabilities float[N, K]
    by the name of a version, see `versions`.
    """

    images: pd.DataFrame
    metrics: dict[str, Any]
    intervals: dict[str, Interval]
    rates: dict[str, Rates]
    points: dict[str, Point]
    calibration: dict[str, NDArray[np.floating]]
    lesions: int
    by_lesion: dict[str, Interval]
    subgroups: list[Subgroup]

    @property
    def classes(self) -> Classes:
        """The classes of its probabilities."""
        return classes_of(self.images)

    def facts(self) -> dict[str, Any]:
        """Return everything but the rows, JSON-serialisable."""
        focus = self.classes.focus_name
        return {
            **self.metrics,
            "intervals": _plain(self.intervals),
            "rates": {dx: _plain(rates._asdict()) for dx, rates in self.rates.items()},
            **({focus: {name: _plain(point._asdict()) for name, point in self.points.items()}} if focus else {}),
            "calibration": self.reliability,
            "lesions": {"n": self.lesions, **_plain(self.by_lesion)},
            "subgroups": [_plain(_named(group, focus)) for group in self.subgroups],
        }

    @property
    def reliability(self) -> dict[str, dict[str, float]]:
        """ECE, Brier score and negative log-likelihood (in nats) of each version of the probabilities."""
        truth = arrays(self.images)[0]
        return {
            name: {"ece": metrics.ece(truth, p), "brier": metrics.brier(truth, p), "nll": metrics.nll(truth, p)}
            for name, p in self.calibration.items()
        }


@dataclass(frozen=True)
class McNemar:
    """Images that only one of two models gets right, and the exact two-sided p of that split (McNemar 1947)."""

    only_first: int
    only_second: int
    p_value: float


@dataclass
class _Progress:
    """Counts the images that have been resampled, of the `total` of all parts of an assessment."""

    report: Callable[[int, int], None]
    total: int
    done: int = 0

    def after(self, images: int, part: _Part) -> _Part:
        """Report that so many more are done, of which `part` was made."""
        self.done += images
        self.report(self.done, self.total)
        return part


def assess(frame: pd.DataFrame, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Assessment:
    """Assess a PREDICTIONS table; takes some seconds for 10,000 images, most of them for intervals.

    Args:
        frame: a PREDICTIONS table.
        on_progress: is called with the images resampled so far and those to be resampled; each counts once a part.

    Raises:
        UserError: no image of it may be reported.
    """
    test = reported(frame)
    lesions, facts = by_lesion(test), [fact for fact in FACTS if test[fact].notna().any()]
    progress = _Progress(on_progress, len(test) * (3 + len(facts)) + len(lesions))
    on_progress(0, progress.total)
    return Assessment(
        images=test,
        metrics=metrics.evaluate(*arrays(test), classes_of(test)),
        intervals=progress.after(len(test), intervals.intervals(test)),
        rates=progress.after(len(test), class_rates(test)),
        points=progress.after(len(test), operating_points(frame)),
        calibration=versions(frame),
        lesions=len(lesions),
        by_lesion=progress.after(len(lesions), intervals.intervals(lesions)),
        subgroups=[progress.after(group.images, group) for group in subgroups(test)],
    )


def reported(frame: pd.DataFrame) -> pd.DataFrame:
    """Select the labelled test and new images: never what a model has learned from, nor what chose its epoch.

    Rows of images that were never published are left out, as a challenge's scorer does.

    Raises:
        UserError: there are none; with the number of images of each split.
    """
    labelled = frame[frame["y_true"].notna() & ~frame["image_id"].isin(UNPUBLISHED)]
    result = labelled[labelled["split"].isin(["test", NEW])].reset_index(drop=True)
    if len(result):
        return result.astype({"y_true": "int32"})
    counts = ", ".join(f"{count:,} {split}" for split, count in frame["split"].value_counts().items())
    raise UserError(
        f"nothing to report: no labelled image that the model has neither learned from nor was chosen by; there are "
        f"{counts}, of which {len(labelled):,} labelled"
    )


def by_lesion(frame: pd.DataFrame) -> pd.DataFrame:
    """Average the probabilities of each lesion's images, a row a lesion; `image_id` is then the lesion's first image.

    A group whose images have different labels is left out: nobody can say what it is.
    """
    probabilities = classes_of(frame).probabilities
    means = frame.groupby("group_id", sort=False)[probabilities].mean()
    one_label = frame.groupby("group_id", sort=False)["y_true"].nunique() == 1
    first = frame.drop_duplicates("group_id").set_index("group_id", drop=False)
    first = first.assign(**{name: means[name] for name in probabilities})
    return first[one_label].reset_index(drop=True)


def class_rates(test: pd.DataFrame) -> dict[str, Rates]:
    """Compute specificity and precision of each class, by dx, for a PREDICTIONS table of images to be reported."""
    (truth, p), codes = arrays(test), classes_of(test).codes
    calls = metrics.predicted(p)
    asked: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {}
    for label, dx in enumerate(codes):
        own, called = truth == label, calls == label
        asked |= {f"specificity of {dx}": (~own, ~called), f"ppv of {dx}": (called, own)}
    result = intervals.shares(test, asked)
    return {dx: Rates(result[f"specificity of {dx}"], result[f"ppv of {dx}"]) for dx in codes}


def operating_points(frame: pd.DataFrame) -> dict[str, Point]:
    """Assess the class in focus at thresholds chosen on validation images, or else by the table's own flags.

    The result is empty without either, and without a class in focus.
    """
    test, validation = reported(frame), of_split(frame[frame["y_true"].notna()], "validation")
    classes, chosen = classes_of(frame), dict[str, float]()
    if len(validation):
        chosen = thresholds.choose(*arrays(validation), classes.focus_label)
        calls = thresholds.called(arrays(test)[1], chosen, classes.focus_label)
    else:
        calls = {name: test[column].to_numpy(bool) for name, column in call_columns(classes).items() if column in test}
    focused = test["y_true"].to_numpy() == classes.focus_label
    rates = intervals.shares(
        test,
        {f"sensitivity of {name}": (focused, reached) for name, reached in calls.items()}
        | {f"specificity of {name}": (~focused, ~reached) for name, reached in calls.items()},
    )
    return {
        name: Point(chosen.get(name), rates[f"sensitivity of {name}"], rates[f"specificity of {name}"])
        for name in calls
    }


def versions(frame: pd.DataFrame) -> dict[str, NDArray[np.floating]]:
    """Return the probabilities of the reported images, float[N, K] each, by the name of a version.

    Beside those as predicted there are those before calibration, where the table has such columns that differ; else
    those at the temperature fitted on validation images, where there are any.
    """
    test, validation = reported(frame), of_split(frame[frame["y_true"].notna()], "validation")
    p = arrays(test)[1]
    columns = classes_of(test).raw
    if {*columns} <= {*test} and not np.allclose(raw := test[columns].to_numpy(np.float32), p, atol=1e-6):
        return {"before calibration": raw, "as predicted": p}
    if validation.empty:
        return {"as predicted": p}
    result = calibration.temperature(*arrays(validation))
    return {"as predicted": p, f"at temperature {result:.2f}": calibration.temperature_scaled(p, result)}


def subgroups(test: pd.DataFrame) -> Iterator[Subgroup]:
    """Assess subgroups by age, sex, site and how the label was made, where any of these rows says it, one by one."""
    for fact in FACTS:
        if test[fact].notna().any():
            yield from (_subgroup(GROUPS[fact], value, rows) for value, rows in _parts(test, fact) if len(rows))


def _parts(test: pd.DataFrame, fact: str) -> Iterator[tuple[str, pd.DataFrame]]:
    known = test[test[fact].notna()]
    if fact == "age":
        ages = known["age"].astype(float)
        yield from ((name, known[(ages >= low) & (ages < high)]) for name, (low, high) in AGES.items())
    else:
        yield from ((str(value), rows) for value, rows in known.groupby(fact, sort=True))
    yield "not known", test[test[fact].isna()]


def _subgroup(fact: str, value: str, rows: pd.DataFrame) -> Subgroup:
    """Compute a subgroup's figures, each where every class that carries it has at least `LEAST` images."""
    classes = classes_of(rows)
    counts = np.bincount(arrays(rows)[0], minlength=len(classes))
    focused = 0 if classes.focus_label is None else int(counts[classes.focus_label])
    metric = {f"focus_{name}": own for name, own in classes.focus_metrics.items()}
    enough = {
        "accuracy": len(rows) >= LEAST,
        "balanced_accuracy": counts[counts > 0].min() >= LEAST,
        "focus_sensitivity": focused >= LEAST,
        "focus_auc": min(focused, len(rows) - focused) >= LEAST,
    }
    asked = [metric.get(name, name) for name, shown in enough.items() if shown]
    result = intervals.intervals(rows, names=asked) if asked else {}
    return Subgroup(
        fact=fact,
        value=value,
        images=len(rows),
        lesions=rows["group_id"].nunique(),
        focused=focused,
        **{name: result.get(metric.get(name, name)) if shown else None for name, shown in enough.items()},
    )


def confident_errors(test: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """List the wrongly predicted images with the greatest probability of the wrong class, at most `most`.

    Returns:
        A row an image: image_id, dx and called (its true and its predicted class), p_true and p (their probabilities).
    """
    (truth, p), codes = arrays(test), classes_of(test).codes
    called = metrics.predicted(p)
    rows = np.arange(len(p))
    result = pd.DataFrame(
        {
            "image_id": test["image_id"],
            "dx": [codes[label] for label in truth],
            "called": [codes[label] for label in called],
            "p": p[rows, called],
            "p_true": p[rows, truth],
        }
    )
    return result[called != truth].sort_values(["p", "image_id"], ascending=[False, True]).head(most)


def mcnemar(first: pd.DataFrame, second: pd.DataFrame) -> McNemar:
    """Compare two tables of the same images, matched by image_id; images of one lesion are taken as independent."""
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
    """Adjust p values for making several comparisons (Holm 1979), in the order of `p_values`."""
    order = np.argsort(p_values)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _named(group: Subgroup, focus: str | None) -> dict[str, Any]:
    """Name the figures of the class in focus in a subgroup after that class, or leave them out where there is none."""
    names = {"focused": f"{focus}s", "focus_sensitivity": f"{focus}_sensitivity", "focus_auc": f"{focus}_auc"}
    return {names.get(name, name): value for name, value in vars(group).items() if focus or name not in names}


def _plain(result: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the intervals among these values into dictionaries."""
    return {name: value.facts() if isinstance(value, Interval) else value for name, value in result.items()}
