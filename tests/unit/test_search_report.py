"""The page of a search: whole in itself, honest about noise and failures, and possible for any number of trials."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES

from ham_ray.data.datasets.ham10000 import DATASET
from ham_ray.evaluation.exact import Interval
from ham_ray.report import search_figures
from ham_ray.report.search_report import SearchData, best_trials, render
from ham_ray.report.summary import Row, Summary, reference_rows

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
        "disclaimers": (),
        "trials": trials,
        "parameters": ["learning_rate", "unfreeze_depth", "hidden_units", "augmentation"],
        "objective": "macro_f1",
        "scores": {number: {1: 0.3, 2: 0.4 + number / 100} for number in trials["trial"]},
        "importances": {"learning_rate": 0.7, "unfreeze_depth": 0.3},
        "classes": CLASSES,
        "data_set": "HAM10000",
        "noise": 0.04,
        "facts": {"command": "python jobs/tune_resnet.py", "commit": "abc"},
        "finals": None,
        "finals_page": "finals/report.html",
    }
    return SearchData(**{**fields, **changes})


def test_the_page_needs_nothing_else(tmp_path):
    page = render(data(table(24)))
    assert not re.search(r"""(src|href)=["'](?!data:|finals/)""", page) and "<script" not in page
    assert page.count('<img src="data:image/svg+xml') == 4 and len(re.findall(r'<img [^>]*alt="[^"]{20,}"', page)) == 4
    assert len(page) < 5_000_000


@pytest.mark.usefixtures("undrawn")
def test_the_best_trials_stand_first_and_unsearched_values_are_dashes():
    trials = table()
    page = render(data(trials))
    complete = trials[trials["state"] == "complete"].sort_values("macro_f1", ascending=False)
    shown = re.findall(r"<tr><th scope=\"row\" class=\"n\">(\d+)</th>", page)
    assert shown == [str(number) for number in complete["trial"]]
    assert "–" in page and "0.04 of the best" in page


@pytest.mark.usefixtures("undrawn")
def test_failures_are_told_with_their_reason_escaped():
    page = render(data(table()))
    assert "Trial 3 failed: loss is &lt;nan&gt;" in page


@pytest.mark.parametrize("count", [1, 2, 4])
def test_short_searches_have_a_page(count: int):
    page = render(data(table(count), importances={}, scores={}))
    assert (
        'alt="What mattered' not in page and "complete trials that importances need" in page and "<h2>History" in page
    )


def test_a_search_without_a_complete_trial_has_a_page():
    trials = table(4).assign(state="fail", macro_f1=np.nan)
    assert "No trial is complete." in render(data(trials, importances={}, scores={}))


@pytest.mark.usefixtures("undrawn")
def test_labels_and_finals_are_shown():
    row = Row("trial 4, one seed", "model", "fold 0", metrics={"macro_f1": Interval(0.612, 0.57, 0.65)})
    page = render(data(table(), disclaimers=("SYNTHETIC DATA",), finals=Summary("d", True, (row,))))
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


@pytest.mark.usefixtures("undrawn")
def test_importances_are_of_ten_complete_trials_or_none():
    nine, ten = (table(count).assign(state="complete", macro_f1=np.linspace(0.3, 0.7, count)) for count in (9, 10))
    page = render(data(nine))
    assert "9 of the 10 complete trials that importances need" in page and 'alt="What mattered' not in page
    assert page.count('<img src="data:image/svg+xml') == 3
    page = render(data(ten))
    assert "Estimated from 10 complete trials" in page and page.count('<img src="data:image/svg+xml') == 4


def test_an_axis_is_logarithmic_where_the_space_is(monkeypatch: pytest.MonkeyPatch):
    """1e-4, 1e-3, 2e-3: on a logarithmic axis the middle one lies at log 10 / log 20 of the height."""
    heights = {}
    axis = search_figures._axis
    monkeypatch.setattr(search_figures, "_axis", lambda *given: heights.setdefault(given[1], axis(*given)))
    trials = pd.DataFrame({"macro_f1": [0.1, 0.2, 0.3], "rate": [1e-4, 1e-3, 2e-3], "depth": [1.0, 10.0, 100.0]})
    search_figures.parallel(trials, ["rate", "depth"], "macro_f1", {"rate"})
    assert heights[0].tolist() == pytest.approx([0, np.log(10) / np.log(20), 1])
    assert heights[1].tolist() == pytest.approx([0, 9 / 99, 1])


@pytest.mark.usefixtures("undrawn")
def test_finals_keep_the_headings_and_the_splits_of_their_rows():
    model = Row("trial 4", "model", "fold 0, 9 images", images=90, metrics={"macro_f1": Interval(0.6, 0.5, 0.7)})
    weak = Row("trial 9", "model", "fold 0, 9 images", images=90, warnings=("not better, beyond chance, than x",))
    trivial = Row("always_nv", "trivial", "fold 0, 9 images", metrics={"macro_f1": Interval(0.115)})
    rows = (model, weak, trivial, *reference_rows(DATASET))
    page = render(data(table(), finals=Summary("d", False, rows)))
    headings = ["trained here", "trivial baselines: what any model has to beat", "original study, as published"]
    places = [page.index(f">{heading}</th>") for heading in headings]
    assert places == sorted(places) and page.index(">original: simple CNN<") > places[2]
    assert page.count("its own, not stated: not comparable") == 3
    assert "not better, beyond chance, than x" in page and "basal cell carcinoma" in page


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.5, 0.47, 0.3, 0.2], "Within 0.04 of the best lies 1 other trial"),
        ([0.5, 0.47, 0.48, 0.2], "Within 0.04 of the best lie 2 other trials"),
        ([0.5, 0.4, 0.3, 0.2], "No other trial lies within 0.04 of the best"),
    ],
)
def test_how_many_trials_are_as_good_as_the_best(values: list[float], said: str):
    assert said in render(data(table(4).assign(state="complete", macro_f1=values)))


@pytest.mark.usefixtures("undrawn")
def test_trials_that_were_stopped_are_spoken_of_only_where_there_are_some():
    assert "3 were stopped early" in render(data(table()))
    assert "stopped early" not in render(data(table().assign(state="complete", macro_f1=0.5)))
