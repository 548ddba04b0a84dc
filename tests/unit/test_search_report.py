"""The page of a search: whole in itself, honest about noise and failures, and possible for any number of trials."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from ham_ray.evaluation.exact import Interval
from ham_ray.evaluation.search_report import SearchData, best_trials, render
from ham_ray.evaluation.summary import Row, Summary

pytestmark = pytest.mark.unit


def table(count: int = 12) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "trial": range(count),
            "state": (["complete", "pruned", "complete", "fail"] * count)[:count],
            "macro_f1": np.where(np.arange(count) % 4 == 3, np.nan, random.uniform(0.3, 0.7, count)),
            "epochs": (([10, 3, 10, 0]) * count)[:count],
            "learning_rate": 10 ** random.uniform(-5, -2, count),
            "unfreeze_depth": random.integers(0, 6, count),
            "hidden_units": [128.0 if place % 2 else np.nan for place in range(count)],
            "augmentation": (["light", "strong", None] * count)[:count],
            "seconds": random.uniform(10, 900, count),
            "run": "",
            "reason": ["loss is <nan>" if place % 4 == 3 else "" for place in range(count)],
        }
    )  # fmt: skip


def data(trials: pd.DataFrame, **changes) -> SearchData:
    fields = {
        "name": "resnet50-a",
        "labels": (),
        "trials": trials,
        "parameters": ["learning_rate", "unfreeze_depth", "hidden_units", "augmentation"],
        "objective": "macro_f1",
        "scores": {number: {1: 0.3, 2: 0.4 + number / 100} for number in trials["trial"]},
        "importances": {"learning_rate": 0.7, "unfreeze_depth": 0.3},
        "noise": 0.04,
        "facts": {"command": "python jobs/tune_resnet.py", "commit": "abc"},
        "finals": None,
        "finals_page": "finals/report.html",
    }
    return SearchData(**{**fields, **changes})


def test_the_page_needs_nothing_else(tmp_path):
    page = render(data(table()))
    assert not re.search(r"""(src|href)=["'](?!data:|finals/)""", page) and "<script" not in page
    assert page.count('<img src="data:image/svg+xml') == 4 and len(re.findall(r'<img [^>]*alt="[^"]{20,}"', page)) == 4
    assert len(page) < 5_000_000


def test_the_best_trials_stand_first_and_unsearched_values_are_dashes():
    trials = table()
    page = render(data(trials))
    complete = trials[trials["state"] == "complete"].sort_values("macro_f1", ascending=False)
    shown = re.findall(r"<tr><td class=\"n\">(\d+)</td>", page)
    assert shown == [str(number) for number in complete["trial"]]
    assert "–" in page and "within 0.04 of the best" in page


def test_failures_are_told_with_their_reason_escaped():
    page = render(data(table()))
    assert "Trial 3 failed: loss is &lt;nan&gt;" in page


@pytest.mark.parametrize("count", [1, 2, 4])
def test_short_searches_have_a_page(count: int):
    page = render(data(table(count), importances={}, scores={}))
    assert "What mattered" not in page and "<h2>History</h2>" in page


def test_a_search_without_a_complete_trial_has_a_page():
    trials = table(4).assign(state="fail", macro_f1=np.nan)
    assert "No trial is complete." in render(data(trials, importances={}, scores={}))


def test_labels_and_finals_are_shown():
    row = Row("trial 4, one seed", "model", "fold 0", metrics={"macro_f1": Interval(0.612, 0.57, 0.65)})
    page = render(data(table(), labels=("SYNTHETIC DATA",), finals=Summary("d", True, (row,))))
    assert "SYNTHETIC DATA" in page and "trial 4, one seed" in page and ".612" in page


def test_the_same_search_is_the_same_file():
    assert render(data(table())) == render(data(table()))


def test_cells_are_short_and_headings_words():
    trials = pd.DataFrame(
        {
            "trial": [3, 4, 5],
            "state": ["complete", "complete", "pruned"],
            "macro_f1": [0.5, 0.7304, 0.9],
            "learning_rate": [1.6234e-4, 9.71e-5, 1.0],
            "augmentation": [None, "light", None],
            "epochs": [9, 9, 3],
            "seconds": [915.2, 30.0, 1.0],
        }
    )
    headings, rows = best_trials(trials, "macro_f1", ["learning_rate", "augmentation"])
    assert headings == ["trial", "macro f1", "learning rate", "augmentation", "epochs", "minutes"]
    assert rows == [["4", ".730", "9.71e-05", "light", "9", "0.5"], ["3", ".500", "0.000162", "–", "9", "15.3"]]
