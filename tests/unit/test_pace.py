"""The time a search still takes, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from ham_ray.search.pace import Ahead, time_left
from ham_ray.search.space import Space
from ham_ray.search.study import Study, open_study

pytestmark = pytest.mark.unit
SPACE = Space(
    family="simple_cnn",
    scheduler={"name": "none"},
    parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2}},
)
AHEAD = Ahead(finalists=1, trainings=3, epochs=4)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return open_study("s", f"sqlite:///{tmp_path / 'study.db'}", SPACE, 4, {})


def end(study: Study, score: float, seconds: float, epochs: int = 2) -> None:
    number = study.ask().number  # type: ignore[union-attr]
    study.report(number, epochs, score)
    study.note(number, seconds=seconds)
    study.complete(number)


def test_one_trial_says_nothing_of_the_others(study: Study):
    assert time_left(study, 1, AHEAD) == "the time left is known after 2 trials"
    end(study, 0.5, 480)
    assert time_left(study, 1, AHEAD) == "the time left is known after 2 trials"


def test_trials_by_the_mean_and_finals_by_the_best(study: Study):
    end(study, 0.5, 480)
    end(study, 0.9, 20)
    finals = "finals then: 3 trainings, about {} min without start and evaluation"
    # 2 × (480 + 20) / 2 = 500 s; 3 trainings × 4 epochs × 20 / 2 s = 120 s
    assert time_left(study, 1, AHEAD) == f"trials: about 8 min; {finals.format(2)}"
    assert time_left(study, 2, AHEAD) == f"trials: about 4 min; {finals.format(2)}"
    assert time_left(study, 9, Ahead(1, 0, 4)) == "trials: about 4 min"
    assert time_left(study, 1, Ahead(2, 3, 4)) == f"trials: about 8 min; {finals.format(25)}"
    assert time_left(study, 1, Ahead(1, 1, 2, scale=0.5)).endswith(
        "finals then: 1 training, about 10 s without start and evaluation"
    )


def test_at_the_end_the_finals_are_left(study: Study):
    for _ in range(4):
        end(study, 0.5, 10)
    assert time_left(study, 1, AHEAD) == "finals: 3 trainings, about 60 s without start and evaluation"
    assert time_left(study, 1, Ahead(0, 0, 4)) == ""


def test_failed_trials_took_no_time_that_tells(study: Study):
    study.fail(study.ask().number, "diverged")  # type: ignore[union-attr]
    end(study, 0.5, 10)
    assert time_left(study, 1, AHEAD) == "the time left is known after 2 trials"
