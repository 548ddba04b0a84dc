"""The closing table: families, trivial baselines and published figures, each with what it was measured on.

One `Summary` is shown in the terminal, written as `summary.csv` and `summary.json`, and is part of the report.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ham_ray import storage
from ham_ray.console import for_tables, progress
from ham_ray.data.dataset import Dataset
from ham_ray.data.images import LEAKAGE
from ham_ray.evaluation import intervals, metrics
from ham_ray.evaluation.assessment import Assessment, assess, reported
from ham_ray.evaluation.exact import Interval
from ham_ray.evaluation.predictions import NEW, arrays, classes_of, of_split
from ham_ray.report import cautions

SYNTHETIC_LABEL = "SYNTHETIC DATA: these figures say nothing about skin lesions"
FEW_LABEL = f"FEWER THAN {cautions.FEW} IMAGES: these figures say next to nothing"
UNGROUPED_LABEL = f"IMAGES WITHOUT A LESION: {LEAKAGE}"
RANDOM_LABEL = "RANDOM WEIGHTS, nothing pretrained"
RANDOM_WEIGHTS = "random (none)"  # of a backbone that was meant to be pretrained
FOOTNOTE = (
    "Below each value its 95 % interval, a bootstrap over lesions; exact (Clopper-Pearson on lesions), with the images "
    "counted, where all are right or none is. Research software, not a medical device."
)
_FOCUS = "_sensitivity"  # to the class in focus, after its name
METRIC_NAMES = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "macro_auc": "macro-AUC",
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
}  # of all classes


def disclaimers(synthetic: bool, random: bool, ungrouped: bool) -> tuple[str, ...]:
    """List what must be said beside results of drawings, of random weights, or of images without known lesions."""
    said = {SYNTHETIC_LABEL: synthetic, RANDOM_LABEL: random, UNGROUPED_LABEL: ungrouped}
    return tuple(label for label, holds in said.items() if holds)


@dataclass(frozen=True)
class Run:
    """What training one family left behind.

    `predictions` is a PREDICTIONS table of both splits and `history` a HISTORY table; both are None where the family
    stopped without a model. `info` may hold `weights` (text; `RANDOM_WEIGHTS` where none were loaded), `minutes`
    (float), `recipe` (its fields) and `warnings` (list of texts).
    """

    predictions: pd.DataFrame | None
    history: pd.DataFrame | None
    info: Mapping[str, Any]

    @cached_property
    def assessment(self) -> Assessment:
        """The assessment of the predictions, made once for table, page, model card and metrics.json."""
        assert self.predictions is not None
        with progress("intervals") as advance:
            return assess(self.predictions, advance)


@dataclass(frozen=True)
class Row:
    """One line of the closing table, of so many `images`, which are test images, new ones or both (`of`).

    `metrics` lacks those that are undefined or were not published.
    """

    name: str
    kind: Literal["model", "trivial", "reference"]
    split: str
    weights: str | None = None
    images: int = 0
    of: str = "test images"
    metrics: dict[str, Interval] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    epochs: int | None = None
    best_epoch: int | None = None
    minutes: float | None = None

    @property
    def details(self) -> str:
        """Weights, epochs and time in one line; empty where nothing was trained."""
        epochs = f"epoch {self.best_epoch} of {self.epochs}" if self.best_epoch else None
        minutes = f"{self.minutes:.1f} min" if self.minutes is not None else None
        return ", ".join(part for part in (self.weights, epochs, minutes) if part)


@dataclass(frozen=True)
class Summary:
    """The rows of one run on one data set; `models` is the heading of those that are neither trivial nor reference."""

    data: str
    synthetic: bool
    rows: tuple[Row, ...]
    models: str = "trained here"
    ungrouped: bool = False

    @property
    def metric_names(self) -> dict[str, str]:
        """The metrics of the table with their titles: `METRIC_NAMES` and the sensitivity to the class in focus."""
        own = dict.fromkeys(name for row in self.rows for name in row.metrics if name.endswith(_FOCUS))
        return METRIC_NAMES | {name: f"{name.removesuffix(_FOCUS).replace('_', ' ')} sens." for name in own}

    @property
    def common_split(self) -> str | None:
        """The test images of all models and trivial baselines; None where they differ."""
        result = {row.split for row in self.rows if row.kind != "reference" and row.metrics}
        return result.pop() if len(result) == 1 else None

    @property
    def measured_on(self) -> str:
        """The data, with the test images where they are the same for all models and trivial baselines."""
        return f"{self.data}, {self.common_split}" if self.common_split else self.data

    @property
    def of(self) -> str:
        """What the images are that models are reported on."""
        result = {row.of for row in self.rows if row.kind == "model" and row.images}
        return result.pop() if len(result) == 1 else "images that the models do not know" if result else "test images"

    @property
    def random_weights(self) -> tuple[str, ...]:
        """The models whose backbone started from random weights."""
        return tuple(row.name for row in self.rows if row.weights == RANDOM_WEIGHTS)

    @property
    def disclaimers(self) -> tuple[str, ...]:
        """What must be said wherever these figures are shown."""
        result = []
        if self.synthetic:
            result.append(SYNTHETIC_LABEL)
        if self.ungrouped:
            result.append(UNGROUPED_LABEL)
        if self.random_weights:
            result.append(f"{RANDOM_LABEL}: {', '.join(self.random_weights)}")
        models = [row for row in self.rows if row.kind == "model"]
        if few := [f"{row.name} ({row.images})" for row in models if 0 < row.images < cautions.FEW]:
            result.append(f"{FEW_LABEL}: {', '.join(few)}")
        return tuple(result)


def summarise(
    runs: Mapping[str, Run],
    trivial: Mapping[str, pd.DataFrame],
    data: str,
    synthetic: bool = False,
    references: Dataset | None = None,
    models: str = "trained here",
    ungrouped: bool = False,
) -> Summary:
    """Summarise models and trivial baselines on their reported images, beside what was published on `references`.

    Published figures are left out for synthetic data: only results on the data set itself can be compared with them.
    """
    rows = [model_row(name, run, trivial) for name, run in runs.items()]
    rows += [trivial_row(name, frame) for name, frame in trivial.items()]
    rows += reference_rows(references) if references and not synthetic else []
    return Summary(data, synthetic, tuple(rows), models, ungrouped)


def model_row(name: str, run: Run, trivial: Mapping[str, pd.DataFrame]) -> Row:
    """Make the row of one model, with cautions beside these trivial baselines; without predictions only warnings."""
    info, warnings = run.info, list(run.info.get("warnings", ()))
    epochs, best_epoch = _epochs(run.history)
    about: dict[str, Any] = {
        "weights": info.get("weights"),
        "epochs": epochs,
        "best_epoch": best_epoch,
        "minutes": info.get("minutes"),
    }
    if run.predictions is None:
        return Row(name, "model", "no model", warnings=tuple(warnings or ["no model was trained"]), **about)
    result = run.assessment
    warnings += cautions.cautions(result.images, {trivial: reported(table) for trivial, table in trivial.items()})
    about |= {"images": len(result.images), "metrics": result.intervals, "warnings": tuple(warnings)}
    return Row(name, "model", split_text(result.images), of=kind_text(result.images), **about)


def trivial_row(name: str, frame: pd.DataFrame) -> Row:
    """Make the row of a trivial baseline's PREDICTIONS."""
    test = reported(frame)
    return Row(name, "trivial", split_text(test), images=len(test), metrics=intervals.intervals(test))


def reference_rows(dataset: Dataset) -> list[Row]:
    """Make the rows of published figures, which no interval came with."""
    names = ("accuracy", "macro_f1", "weighted_f1")
    return [
        Row(
            model.name,
            "reference",
            dataset.published_split,
            metrics={name: Interval(getattr(model, name)) for name in names},
        )
        for model in dataset.published
    ]


def evaluation(run: Run) -> dict[str, Any]:
    """Collect a trained run's figures for metrics.json: on validation images, where it has any, and on test images."""
    assert run.predictions is not None
    validation = of_split(run.predictions, "validation")
    chosen = {} if validation.empty else {"validation": metrics.evaluate(*arrays(validation), classes_of(validation))}
    return {**chosen, "test": run.assessment.facts()}


def split_text(test: pd.DataFrame) -> str:
    """Say what the rows of a PREDICTIONS table are, such as "fold 0, 2,003 images, lesion-grouped"."""
    new = int((test["split"] == NEW).sum())
    if new == len(test):
        return f"{new:,} images new to the model"
    if new:
        return f"{len(test) - new:,} test images and {new:,} new to the model"
    folds = sorted(set(test["fold"].tolist()))
    if folds == [-1]:
        return f"{len(test):,} test images"
    named = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
    return f"{named}, {len(test):,} images, lesion-grouped"


def kind_text(test: pd.DataFrame) -> str:
    """Say what the rows of a PREDICTIONS table are to their model: "test images", "images new to the model" or both."""
    new = (test["split"] == NEW).mean()
    return "test images" if new == 0 else "images new to the model" if new == 1 else "test images and new ones"


def write(summary: Summary, folder: str) -> None:
    """Write `summary.csv` and `summary.json` into a folder at a path or URI."""
    content = json.dumps(asdict(summary) | {"labels": summary.disclaimers}, indent=2)
    storage.write_bytes(storage.join(folder, "summary.json"), content.encode())
    storage.write_bytes(storage.join(folder, "summary.csv"), frame(summary).to_csv(index=False).encode())


def frame(summary: Summary) -> pd.DataFrame:
    """Make summary.csv's table, a line a row: each metric with its limits `_low` and `_high`, and what it is of."""
    return pd.DataFrame([_flat(row, summary) for row in summary.rows]).astype(
        {"epochs": "Int64", "best_epoch": "Int64"}
    )


def show(summary: Summary, console: Console | None = None) -> None:
    """Print the summary's table."""
    (console or for_tables()).print(table(summary))


def table(summary: Summary) -> Table:
    """Make a rich table for 100 columns; each value with its interval below it, warnings at the foot."""
    notes = {text: index for index, text in enumerate(dict.fromkeys(_warnings(summary)), start=1)}
    title = [f"Results, {escape(summary.measured_on)}"]
    title += [f"[bold red]{escape(label)}[/]" for label in summary.disclaimers]
    foot = [f"[bold yellow]! {index}[/] {escape(text)}" for text, index in notes.items()]
    shown = Table(
        title="\n".join(title),
        caption="\n".join([*foot, f"[dim]{FOOTNOTE}[/]"]),
        title_style="bold",
        caption_style="none",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    shown.add_column("model", min_width=36)
    for name in summary.metric_names.values():
        shown.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for row, following in itertools.zip_longest(summary.rows, summary.rows[1:]):
        marks = [f"! {notes[text]}" for text in row.warnings]
        cells = [_cell(row.metrics.get(name)) for name in summary.metric_names]
        shown.add_row(
            _name_cell(row, marks, summary.common_split),
            *cells,
            end_section=following is None or following.kind != row.kind,
        )
    return shown


def number(value: float | None, decimals: int = 3) -> str:
    """Write a share without its leading zero, as the field prints them: .482, 1.000; a dash for None."""
    return "–" if value is None else f"{value:.{decimals}f}".removeprefix("0")


def _epochs(history: pd.DataFrame | None) -> tuple[int | None, int | None]:
    """Count the epochs trained, and return the epoch that was kept."""
    if history is None or history.empty:
        return None, None
    best = history.loc[history["best"].astype(bool), "epoch"]
    return int(history["epoch"].nunique()), int(best.iloc[-1]) if len(best) else None


def _flat(row: Row, summary: Summary) -> dict[str, Any]:
    line: dict[str, Any] = {"name": row.name, "kind": row.kind, "data": summary.data, "synthetic": summary.synthetic}
    line |= {"split": row.split, "weights": row.weights}
    for name in summary.metric_names:
        result = row.metrics.get(name)
        line |= {
            name: result and result.value,
            f"{name}_low": result and result.low,
            f"{name}_high": result and result.high,
        }
    return line | {
        "epochs": row.epochs,
        "best_epoch": row.best_epoch,
        "minutes": row.minutes,
        "warnings": "; ".join(row.warnings),
    }


def _warnings(summary: Summary) -> list[str]:
    return [text for row in summary.rows for text in row.warnings]


def _name_cell(row: Row, marks: list[str], known_split: str | None) -> str:
    name = f"[bold]{escape(row.name)}[/]{' (trivial)' * (row.kind == 'trivial')} [bold yellow]{' '.join(marks)}[/]"
    details = [row.details, row.split if row.split != known_split else ""]
    return "\n".join([name, *(f"[dim]{escape(text)}[/]" for text in details if text)])


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    if interval.low is None:
        return number(interval.value)
    limits = f"{number(interval.value)}\n[dim]{number(interval.low, 2)}–{number(interval.high, 2)}[/]"
    return f"{limits}\n[dim]{interval.counted}[/]" if interval.counted else limits
