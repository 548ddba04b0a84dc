"""The page of a search: what was tried, what mattered, what came out. One HTML file without scripts or requests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ham_ray import storage
from ham_ray.data.classes import Classes
from ham_ray.report import search_figures as figures
from ham_ray.report.report import as_address, environment
from ham_ray.report.summary import Summary, number

LEAST = 10  # complete trials below which importances are chance


@dataclass(frozen=True)
class SearchData:
    """All that the page shows.

    `data_set` is its title and `noise` the spread of a score on one validation fold by chance, where it is known.
    `importances` may be empty; `scores` are by trial and epoch; `finals` is the table of the best trials trained again,
    where they were, and `finals_page` the path of their own page; `logarithmic` are the parameters that the space draws
    on a logarithmic scale.
    """

    name: str
    disclaimers: tuple[str, ...]
    trials: pd.DataFrame
    parameters: list[str]
    objective: str
    scores: Mapping[int, Mapping[int, float]]
    importances: Mapping[str, float]
    classes: Classes
    data_set: str
    noise: float | None
    facts: Mapping[str, str]
    finals: Summary | None
    finals_page: str
    logarithmic: frozenset[str] = frozenset()


def render(data: SearchData) -> str:
    """Render the page as HTML text."""
    ranked = data.trials[data.trials["state"] == "complete"].sort_values(data.objective, ascending=False)
    best = int(ranked["trial"].iloc[0]) if len(ranked) else None
    headings, rows = best_trials(data.trials, data.objective, data.parameters)
    pictures = {"history": figures.history(data.trials, data.objective)}
    if data.scores:
        pictures["curves"] = figures.curves(data.scores, best, data.objective)
    enough = len(ranked) >= LEAST
    if data.importances and enough:
        pictures["importances"] = figures.importances(data.importances)
    varied = [name for name in data.parameters if data.trials[name].nunique() > 1]
    if varied and data.trials[data.objective].notna().sum() > 1:
        pictures["parallel"] = figures.parallel(data.trials, varied, data.objective, data.logarithmic)
    return (
        environment()
        .get_template("search.html.jinja")
        .render(
            data=data,
            counts=data.trials["state"].value_counts().to_dict(),
            headings=headings,
            rows=rows,
            failures=data.trials[data.trials["state"] == "fail"][["trial", "reason"]].to_dict("records"),
            close=int((ranked[data.objective] >= ranked[data.objective].max() - (data.noise or 0)).sum()) - 1,
            sections=_sections(data.trials),
            too_few=f"{len(ranked)} of the {LEAST} complete trials that importances need." if not enough else "",
            disclaimers=tuple(dict.fromkeys([*data.disclaimers, *(data.finals.disclaimers if data.finals else ())])),
            classes=data.classes,
            data_set=data.data_set,
            pictures={name: as_address(picture) for name, picture in pictures.items()},
            metric_names=data.finals.metric_names if data.finals else {},
        )
    )


def write(data: SearchData, uri: str) -> None:
    """Render the page to a path or URI."""
    storage.write_bytes(uri, render(data).encode())


def _sections(trials: pd.DataFrame) -> list[tuple[str, str, str]]:
    """List the pictures' names, headings and captions; a caption speaks of what these trials have."""
    pruned, complete = (int((trials["state"] == state).sum()) for state in ("pruned", "complete"))
    ended = f" {pruned} were stopped early because others were better at that epoch." if pruned else ""
    return [
        (
            "history",
            "History",
            "The value of each trial in the order in which they were asked for.",
        ),
        ("curves", "Scores by epoch", f"A line a trial.{ended}"),
        (
            "importances",
            "What mattered",
            "Of the parameters that every trial has. A small share means that the parameter made little difference "
            f"within its range, not that it never matters. Estimated from {complete} complete trials.",
        ),
        (
            "parallel",
            "All trials at a glance",
            "Each line is a trial, the brighter the better. Where bright lines meet on an axis, that value may matter.",
        ),
    ]


def best_trials(
    trials: pd.DataFrame, objective: str, parameters: list[str], most: int = 10
) -> tuple[list[str], list[list[str]]]:
    """Make the table of the best complete trials, at most `most`: headings, and the cells of each row."""
    ranked = trials[trials["state"] == "complete"].sort_values(objective, ascending=False).head(most)
    headings = ["trial", objective, *parameters, "epochs", "minutes"]
    shown = ranked.assign(**{objective: ranked[objective].map(number), "minutes": (ranked["seconds"] / 60).round(1)})
    rows = [[_text(value) for value in row] for row in shown[headings].to_numpy(dtype=object)]
    return [name.replace("_", " ") for name in headings], rows


def _text(value: Any) -> str:
    """Write a cell; a dash for a parameter that was not searched."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
