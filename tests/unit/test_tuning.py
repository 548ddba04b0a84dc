"""The search job around its trials: what it refuses before they start, and what follows when they end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ham_ray.commands import tuning
from ham_ray.errors import UserError
from ham_ray.search.space import Space
from ham_ray.search.study import Study, open_study

pytestmark = pytest.mark.unit
SPACE = Space(
    family="simple_cnn",
    scheduler={"name": "none"},
    parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}},
)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return open_study("s", f"sqlite:///{tmp_path / 'study.db'}", SPACE, 4, {"images": "abc"})


@pytest.fixture
def search(study: Study, tmp_path: Path) -> SimpleNamespace:
    """A search of four trials, without what runs them."""
    return SimpleNamespace(
        name="s",
        place=str(tmp_path / "s"),
        space=SPACE,
        means=None,
        study=lambda: study,
        shared=lambda: None,
        trainable=lambda shared: None,
    )


def test_an_interrupted_search_says_so_and_trains_no_finals(monkeypatch, study, search):
    def interrupted(*arguments) -> None:
        study.report(number := study.ask().number, 1, 0.5)
        study.complete(number)
        study.ask()

    monkeypatch.setattr(tuning, "_prepared", lambda options: search)
    monkeypatch.setattr(tuning.tuner, "run", interrupted)
    monkeypatch.setattr(tuning, "finals", lambda *arguments: pytest.fail("the test fold was opened"))
    with pytest.raises(UserError, match="'s' was interrupted: 1 of 4 trials finished; the same command goes on"):
        tuning.run(SimpleNamespace(trials=4, finalists=1))
    assert (Path(search.place) / "trials.csv").exists()
