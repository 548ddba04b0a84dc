"""The report: one HTML page with everything inside, without scripts and without requests to anywhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from ham_ray import storage
from ham_ray.data.classes import Classes
from ham_ray.data.images import LEAKAGE
from ham_ray.evaluation import assessment, metrics, thresholds
from ham_ray.evaluation.intervals import RESAMPLES, sensitivities
from ham_ray.evaluation.predictions import arrays
from ham_ray.report import figures
from ham_ray.report.gradcam_sheet import Attention
from ham_ray.report.paired import COMPARED, Difference
from ham_ray.report.summary import METRIC_NAMES, Row, Run, Summary, number

_LEFT_OUT = ("accuracy", "weighted_f1")  # of the picture of intervals: four metrics are enough for a line
POINT_NAMES = {name: f"{rate} {100 * wanted:.0f} %" for name, (rate, wanted) in thresholds.POINTS.items()}
HISTOLOGY = (assessment.GROUPS["dx_type"], "histo")  # the subgroup
SURE = 0.9  # a probability above which nobody would look again
LESION_SPLIT = (
    "Whole lesions, not images, were split into folds: no lesion has images on both sides, and neither have known "
    "near-duplicates under different lesion names. Folds hold equal shares of each class. There are no patient names "
    "in the data, so two lesions of one patient may be on both sides."
)
UNGROUPED = f" An image whose lesion is not known counts as one by itself: {LEAKAGE}."
Thumbnails = Callable[[list[str]], dict[str, bytes]]


@dataclass(frozen=True)
class ReportData:
    """All that a report shows.

    `facts` are lines of "what was run" in their order: command, commit, machine, date, … `counts` is `class_counts` of
    the splits. `split` says how images were kept apart. `selection` names what chose epochs and settings, such as
    "validation macro-F1". `thumbnails` gives small JPEGs of images by their ids, where images are at hand; `attention`
    is by model, where one was saved.
    """

    title: str
    summary: Summary
    runs: Mapping[str, Run]
    trivial: Mapping[str, pd.DataFrame]
    facts: Mapping[str, str]
    counts: pd.DataFrame
    classes: Classes
    fingerprint: str
    licence: str
    attribution: str
    selection: str
    differences: list[Difference]
    split: str = LESION_SPLIT
    thumbnails: Thumbnails | None = None
    attention: Mapping[str, Attention] = field(default_factory=dict)


def class_counts(splits: Mapping[str, pd.DataFrame], classes: Classes) -> pd.DataFrame:
    """Count images and lesions by class and split: index dx and "all", columns (split, "images" | "lesions"), int."""
    counted = {}
    for split, rows in splits.items():
        counted[split, "images"] = rows.groupby("dx").size()
        counted[split, "lesions"] = rows.groupby("dx")["group_id"].nunique()
    table = pd.DataFrame(counted).reindex(classes.codes).fillna(0).astype(int)
    table.loc["all"] = table.sum()
    return table


def environment(escape: bool = True) -> Environment:
    """Make Jinja's environment with the pages' templates and filters; `escape` for HTML."""
    result = Environment(
        loader=PackageLoader("ham_ray.report"),
        autoescape=escape,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result.filters |= {"number": number, "signed": _signed, "first_upper": lambda text: text[:1].upper() + text[1:]}
    return result


def render(data: ReportData) -> str:
    """Render the page as HTML text."""
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            data=data,
            summary=data.summary,
            run_facts={
                **data.facts,
                "data": data.summary.data,
                "fingerprint": data.fingerprint,
                "licence of the data": data.licence,
                "attribution": data.attribution,
            },
            metric_names=data.summary.metric_names,
            resamples=RESAMPLES,
            classes=data.classes,
            intervals=_intervals_image(data.summary),
            differences=data.differences,
            compared=[METRIC_NAMES[name] for name in COMPARED],
            point_names=POINT_NAMES,
            families=[_family(row, data.runs[row.name], data) for row in data.summary.rows if row.name in data.runs],
        )
    )


def write(data: ReportData, uri: str) -> None:
    """Render the page to a path or URI."""
    storage.write_bytes(uri, render(data).encode())


def _family(row: Row, run: Run, data: ReportData) -> dict[str, Any]:
    """Collect what the page says of one family; without predictions only its row and curves."""
    result: dict[str, Any] = {"row": row, "test": None, "matrix": None, "curves": None, "attention": None}
    result |= {"recipe": run.info.get("recipe"), "calibrated": run.info.get("calibration")}
    if run.predictions is not None:
        result |= _assessed(run.assessment, data.thumbnails)
        if looked := data.attention.get(row.name):
            result |= {"attention": _jpeg(looked.sheet), "corners": looked.corners.sentences()}
        names = zip(data.classes.codes, sensitivities(data.classes), strict=True)
        result["sensitivity"] = {dx: row.metrics.get(name) for dx, name in names}
    if run.history is not None and len(run.history):
        result["curves"] = as_address(figures.learning_curves(run.history))
        result["unweighted"] = figures.UNWEIGHTED in run.history
    return result


def _assessed(result: assessment.Assessment, thumbnails: Thumbnails | None) -> dict[str, Any]:
    """Collect figures and pictures of the reported images."""
    (truth, p), classes = arrays(result.images), result.classes
    errors = assessment.confident_errors(result.images)
    small = thumbnails(errors["image_id"].tolist()) if thumbnails else {}
    return {
        "test": result.metrics,
        "rates": result.rates,
        "matrix": as_address(figures.confusion_matrix(result.metrics["confusion"], classes.codes)),
        "points": result.points,
        "curves_of_focus": _focus_curves(truth, p, classes),
        "calibration": result.reliability,
        "reliability": as_address(figures.reliability(truth, result.calibration)),
        "malignant": result.intervals.get("malignant_auc"),
        "lesions": result.lesions,
        "by_lesion": result.by_lesion,
        "subgroups": result.subgroups,
        "dashes": any(
            None in (group.accuracy, group.balanced_accuracy, *([group.focus_auc] if classes.focus else []))
            for group in result.subgroups
        ),
        "histology": any((group.fact, group.value) == HISTOLOGY for group in result.subgroups),
        "wrong": int((metrics.predicted(p) != truth).sum()),
        "confidence": confidence(errors),
        "errors": errors.assign(picture=errors["image_id"].map(lambda image_id: _jpeg(small.get(image_id)))),
    }


def _focus_curves(truth: NDArray[np.integer], p: NDArray[np.floating], classes: Classes) -> str | None:
    """Draw the curves of the class in focus; None where there is none, or nothing beside it."""
    label, positive = classes.focus_label, truth == classes.focus_label
    if label is None or classes.focus is None or not 0 < positive.sum() < len(positive):
        return None
    return as_address(figures.class_curves(positive, p[:, label], classes.name(classes.focus)))


def confidence(errors: pd.DataFrame) -> str:
    """Say what these wrong predictions, the most confident first, mean for a check by confidence; empty without any."""
    if errors.empty:
        return ""
    sure = int((errors["p"] >= SURE).sum())
    if not sure:
        return (
            f"None has a probability of {100 * SURE:.0f} % or more, the highest is {number(errors['p'].iloc[0], 2)}: a "
            "check of predictions with low confidence would see all of them."
        )
    return (
        f"{sure} {'has' if sure == 1 else 'have'} a probability of {100 * SURE:.0f} % or more: no check of "
        "predictions with low confidence would see such errors."
    )


def _jpeg(picture: bytes | None) -> str | None:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" if picture else None


def _intervals_image(summary: Summary) -> str:
    values = {row.name: row.metrics for row in summary.rows if row.kind != "reference" and row.metrics}
    return as_address(
        figures.interval_plot(
            values, {name: title for name, title in summary.metric_names.items() if name not in _LEFT_OUT}
        )
    )


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{number(abs(value))}"


def as_address(svg: bytes) -> str:
    """Return an SVG picture as the address of an `img`."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
