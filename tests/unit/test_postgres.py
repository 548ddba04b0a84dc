"""A study in PostgreSQL: made, stopped for a while, gone on with."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from optuna.trial import TrialState
from postgres import Server, lacking, server

from ham_ray.search import database, ownership
from ham_ray.search.database import NoAnswerError, StudyError
from ham_ray.search.ownership import owned
from ham_ray.search.space import Space
from ham_ray.search.study import open_study

pytestmark = pytest.mark.job
SPACE = Space(
    family="simple_cnn",
    scheduler={"name": "none"},
    parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2}},
    points=[{"learning_rate": 1e-3}],
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    if reason := lacking():
        pytest.skip(reason)
    with server() as made:
        yield made


def test_a_study_goes_on_after_its_server_was_away(postgres: Server, monkeypatch, capsys):
    monkeypatch.setattr(database, "EVERY", 2.0)
    url = database.with_driver(postgres.url)
    with owned("s", url, "here") as held:
        study = open_study("s", url, SPACE, 3, {}, ownership=held)
        assert study.ask().values == SPACE.points[0]
        postgres.stop()
        threading.Timer(5.0, postgres.start).start()
        assert not study.report(0, 1, 0.5)
        lines = capsys.readouterr().out.splitlines()
        assert "waiting, 0 s of 600 s" in lines[0] and "waiting, 2 s of 600 s" in lines[1]
        assert "Connection refused" in lines[0] and "answers again, after" in lines[-1]
        postgres.stop()  # so quickly that only the pool's connections are broken
        postgres.start()
        assert study.complete(0) == 0.5 and [study.ask().number, study.ask().number] == [1, 2]
        states = [trial.state for trial in study.study.get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING]


def test_one_that_stays_away_is_one_error_and_the_same_study_goes_on(postgres: Server, monkeypatch, capsys):
    monkeypatch.setattr(database, "AWAY", 3.0)
    monkeypatch.setattr(ownership, "DEAD", 5.0)
    url = database.with_driver(postgres.url)
    with owned("away", url, "here") as held:
        study = open_study("away", url, SPACE, 3, {}, ownership=held)
        begun = study.ask()
        postgres.stop()
        with pytest.raises(NoAnswerError, match="has not answered for 3 s .*; once it does, the same command goes on"):
            study.report(begun.number, 1, 0.5)
        with pytest.raises(NoAnswerError), owned("away", url, "here"):
            pass
    postgres.start()
    with owned("away", url, "here") as held:
        assert open_study("away", url, SPACE, 3, {}, ownership=held).ask() == begun
    assert "taken over" not in capsys.readouterr().err


def test_what_no_waiting_mends_ends_at_once(postgres: Server, monkeypatch):
    monkeypatch.setattr(database, "AWAY", 1e9)
    for wrong in (postgres.url.replace("/postgres", "/nothere"), postgres.url.replace("postgres@", "nobody@")):
        with (
            pytest.raises(StudyError, match="does not exist; see whether"),
            owned("s", database.with_driver(wrong), "x"),
        ):
            pass
