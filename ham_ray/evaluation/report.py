"""The report: one HTML page with everything inside, without scripts and without requests to anywhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ham_ray import storage
from ham_ray.diagnoses import CODES, DIAGNOSES
from ham_ray.evaluation import assessment, figures, thresholds
from ham_ray.evaluation.attention_sheet import Attention
from ham_ray.evaluation.exact import Interval
from ham_ray.evaluation.floors import THUMBNAIL_FLOOR
from ham_ray.evaluation.intervals import RESAMPLES, SENSITIVITIES, paired_differences
from ham_ray.evaluation.predictions import arrays
from ham_ray.evaluation.summary import METRIC_NAMES, Row, Run, Summary, number

SHOWN = ("balanced_accuracy", "macro_f1", "macro_auc", "melanoma_sensitivity")  # in the picture of intervals
COMPARED = ("macro_f1", "balanced_accuracy")
POINT_NAMES = {name: f"{rate} {100 * wanted:.0f} %" for name, (rate, wanted) in thresholds.POINTS.items()}
LESION_SPLIT = (
    "Whole lesions, not images, were split into folds: no lesion has images on both sides, and neither have known "
    "near-duplicates under different lesion names. Folds hold equal shares of each class. There are no patient names "
    "in the data, so two lesions of one patient may be on both sides."
)
Thumbnails = Callable[[list[str]], dict[str, bytes]]


@dataclass(frozen=True)
class ReportData:
    """All a report shows.

    `facts` are lines of "what was run" in their order: command, commit, machine, date, … `counts` is `class_counts` of
    the splits. `split` says how images were kept apart. `selection` names what chose epochs and settings, such as
    "validation macro-F1". `thumbnails` gives small JPEGs of images by their ids, where images are at hand; `attention`
    is by model, where one was saved.
    """

    title: str
    summary: Summary
    runs: Mapping[str, Run]
    floors: Mapping[str, pd.DataFrame]
    facts: Mapping[str, str]
    counts: pd.DataFrame
    fingerprint: str
    licence: str
    attribution: str
    selection: str
    differences: list[Difference]
    split: str = LESION_SPLIT
    thumbnails: Thumbnails | None = None
    attention: Mapping[str, Attention] = field(default_factory=dict)


class Difference(NamedTuple):
    """How much better one model is than another, by metric, on the same images.

    `shared` images both have predicted; `images` are those that only one of the two gets right; `p` is its p value,
    adjusted for all comparisons made.
    """

    model: str
    other: str
    shared: int
    by: dict[str, Interval]
    images: assessment.McNemar
    p: float


def class_counts(splits: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Images and lesions by class and split: index dx and "all", columns (split, "images" | "lesions"), int."""
    counted = {}
    for split, rows in splits.items():
        counted[split, "images"] = rows.groupby("dx").size()
        counted[split, "lesions"] = rows.groupby("dx")["group_id"].nunique()
    table = pd.DataFrame(counted).reindex(CODES).fillna(0).astype(int)
    table.loc["all"] = table.sum()
    return table


def environment(escape: bool = True) -> Environment:
    """Where the pages' templates are, and their filters; `escape` for HTML."""
    found = Environment(
        loader=PackageLoader("ham_ray.evaluation"),
        autoescape=escape,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": number, "signed": _signed}
    return found


def render(data: ReportData) -> str:
    """The page as HTML text."""
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            data=data,
            summary=data.summary,
            metric_names=METRIC_NAMES,
            resamples=RESAMPLES,
            diagnoses=DIAGNOSES,
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
    """What the page says of one family; without predictions only its row and curves."""
    found: dict[str, Any] = {"row": row, "test": None, "matrix": None, "curves": None, "attention": None}
    found["recipe"] = run.info.get("recipe")
    if run.predictions is not None:
        found |= _assessed(run.assessment, data.thumbnails)
        if looked := data.attention.get(row.name):
            found |= {"attention": _jpeg(looked.sheet), "corners": looked.corners}
        found["sensitivity"] = {dx: row.metrics.get(name) for dx, name in zip(CODES, SENSITIVITIES, strict=True)}
    if run.history is not None and len(run.history):
        found["curves"] = as_address(figures.learning_curves(run.history))
    return found


def _assessed(found: assessment.Assessment, thumbnails: Thumbnails | None) -> dict[str, Any]:
    """Figures and pictures of the reported images."""
    truth, p = arrays(found.images)
    melanoma = truth == thresholds.MELANOMA
    errors = assessment.confident_errors(found.images)
    small = thumbnails(errors["image_id"].tolist()) if thumbnails else {}
    return {
        "test": found.metrics,
        "rates": found.rates,
        "matrix": as_address(figures.confusion_matrix(found.metrics["confusion"])),
        "points": found.melanoma,
        "melanoma": as_address(figures.melanoma_curves(melanoma, p[:, thresholds.MELANOMA]))
        if 0 < melanoma.sum() < len(melanoma)
        else None,
        "calibration": found.reliability,
        "reliability": as_address(figures.reliability(truth, found.calibration)),
        "malignant": found.intervals.get("malignant_auc"),
        "lesions": found.lesions,
        "by_lesion": found.by_lesion,
        "subgroups": found.subgroups,
        "errors": errors.assign(picture=errors["image_id"].map(lambda image_id: _jpeg(small.get(image_id)))),
    }


def _jpeg(picture: bytes | None) -> str | None:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" if picture else None


def differences(
    runs: Mapping[str, Run], floors: Mapping[str, pd.DataFrame], pairs: Iterable[tuple[str, str]] = ()
) -> list[Difference]:
    """Of each of the pairs, and of each run to the thumbnail floor, on the images that both have predicted."""
    tests = {name: assessment.reported(table) for name, table in floors.items()}
    tests |= {name: run.assessment.images for name, run in runs.items() if run.predictions is not None}
    asked = dict.fromkeys([*pairs, *((name, THUMBNAIL_FLOOR) for name in runs)])
    shared = {pair: _shared(*(tests[name] for name in pair)) for pair in asked if set(pair) <= set(tests)}
    shared = {pair: both for pair, both in shared.items() if len(both[0])}
    counted = [assessment.mcnemar(*both) for both in shared.values()]
    adjusted = assessment.holm([found.p_value for found in counted])
    return [
        Difference(*pair, len(both[0]), paired_differences(*both, COMPARED), images, p)
        for (pair, both), images, p in zip(shared.items(), counted, adjusted, strict=True)
    ]


def _shared(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the images that are in both."""
    return first[first["image_id"].isin(second["image_id"])], second[second["image_id"].isin(first["image_id"])]


def _intervals_image(summary: Summary) -> str:
    values = {row.name: row.metrics for row in summary.rows if row.kind != "reference" and row.metrics}
    return as_address(figures.interval_plot(values, {name: METRIC_NAMES[name] for name in SHOWN}))


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{number(abs(value))}"


def as_address(svg: bytes) -> str:
    """An SVG picture as the address of an `img`."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
