"""A server with the study's database that goes away during a search: waited for, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from ham_ray import console
from ham_ray.search import database
from ham_ray.search.database import AwayError, NoAnswerError, StudyError
from ham_ray.search.space import Space
from ham_ray.search.study import Study, open_study

pytestmark = pytest.mark.unit
URL = "postgresql://me:secret@host/db"
SHOWN = "the study's database postgresql://me:***@host/db"
SPACE = Space(
    family="simple_cnn",
    scheduler={"name": "none"},
    parameters={
        "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2},
        "dropout": {"type": "float", "low": 0.0, "high": 0.5},
    },
    points=[{"learning_rate": 1e-3}, {"dropout": 0.25}],
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time, which passes only where somebody sleeps."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(database.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(database.time, "sleep", lambda seconds: setattr(made, "now", made.now + seconds))
    return made


def away_until(clock: SimpleNamespace, seconds: float) -> Callable[[str], str]:
    def call(word: str) -> str:
        if clock.now < seconds:
            raise AwayError(URL, "connection refused")
        return word

    return database.patient(call)


def test_a_database_that_is_away_is_waited_for_with_a_line_every_half_minute(clock: SimpleNamespace, capsys):
    assert away_until(clock, 90)("answer") == "answer"
    assert capsys.readouterr().out.splitlines() == [
        f"{SHOWN} does not answer (connection refused); waiting, 0 s of 600 s",
        f"{SHOWN} does not answer (connection refused); waiting, 30 s of 600 s",
        f"{SHOWN} does not answer (connection refused); waiting, 60 s of 600 s",
        f"{SHOWN} answers again, after 90 s",
    ]


def test_a_connection_that_only_broke_is_replaced_without_a_word(capsys):
    answers = iter([AwayError(URL, "server closed the connection"), "answer"])

    @database.patient
    def call() -> str:
        if isinstance(answer := next(answers), AwayError):
            raise answer
        return answer

    assert call() == "answer" and capsys.readouterr().out == ""


def test_after_ten_minutes_the_job_ends_with_one_line_and_a_code_of_its_own(clock: SimpleNamespace, tmp_path, capsys):
    process: Any = SimpleNamespace(log=tmp_path / "log.txt")
    ending = console._worked(lambda: away_until(clock, 601)("answer"), process, "kept")  # type: ignore[arg-type, return-value]
    assert ending.code == 75
    assert ending.line == (
        f"error: {SHOWN} has not answered for 600 s (connection refused); once it does, the same command goes on"
    )
    assert capsys.readouterr().out.count("waiting") == 20


def test_what_waits_inside_of_what_waits_is_not_waited_for_twice(clock: SimpleNamespace):
    with pytest.raises(NoAnswerError):
        database.patient(away_until(clock, 10_000))("answer")
    assert clock.now == database.AWAY


class Driver(Exception):
    """An error as drivers have it: psycopg with a SQLSTATE, where the server answered; MySQL with a number."""

    def __init__(self, *arguments: Any, sqlstate: str | None = None) -> None:
        super().__init__(*arguments)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (OperationalError("SELECT", {}, Driver('port 5432 failed: Connection refused\n\tIs the server'), False), True),
        (OperationalError("SELECT", {}, Driver("failed to resolve host 'db'"), False), True),
        (OperationalError("SELECT", {}, Driver("FATAL:  the database system is starting up"), False), True),
        (OperationalError("SELECT", {}, Driver("FATAL:  sorry, too many clients already"), False), True),
        (OperationalError("SELECT", {}, Driver("terminating connection", sqlstate="57P01"), False), True),
        (OperationalError("SELECT", {}, Driver("deadlock detected", sqlstate="40P01"), False), True),
        (OperationalError("SELECT", {}, Driver(2003, "Can't connect to MySQL server"), False), True),
        (DBAPIError("SELECT", {}, Driver("server closed"), connection_invalidated=True), True),
        (OperationalError("SELECT", {}, Driver('FATAL:  password authentication failed for user "me"'), False), False),
        (OperationalError("SELECT", {}, Driver('FATAL:  database "db" does not exist'), False), False),
        (OperationalError("SELECT", {}, Driver("could not extend file", sqlstate="53100"), False), False),
        (OperationalError("SELECT", {}, Driver(1045, "Access denied for user"), False), False),
        (ProgrammingError("SELECT", {}, Driver("relation does not exist", sqlstate="42P01"), False), False),
    ],
)  # fmt: skip
def test_only_what_may_pass_is_waited_for(error: DBAPIError, passing: bool):
    assert isinstance(database.explained(error, URL), AwayError) == passing
    assert type(database.explained(error, "sqlite:////study.db")) is StudyError  # has waited already


class Forgetful:
    """A storage that does what it is asked for, and whose answer is lost every second time."""

    def __init__(self, storage: Any) -> None:
        self._storage, self.lost = storage, set[str]()
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._storage, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **more: Any) -> Any:
            result = value(*arguments, **more)
            self._count += 1
            if self._count % 2:
                self.lost.add(name)
                raise AwayError(URL, "connection reset")
            return result

        return call


def finish(study: Study) -> list[dict]:
    """Run all trials that are open, two at a time; returns their values."""
    asked = []
    while pair := [ask for ask in (study.ask(), study.ask()) if ask]:
        for ask in pair:
            study.report(ask.number, 1, 0.5 + ask.values["dropout"])
            study.note(ask.number, seconds=1.0)
        study.fail(pair[0].number, "lost") if pair[0].number == 2 else study.complete(pair[0].number)
        for ask in pair[1:]:
            study.prune(ask.number) if ask.number == 3 else study.complete(ask.number)
        asked += [ask.values for ask in pair]
    return asked


@pytest.mark.parametrize("offset", [0, 1])
def test_a_search_whose_answers_are_lost_is_the_search_without(tmp_path: Path, monkeypatch, offset: int):
    monkeypatch.setattr(database, "_PAUSE", 0.0)
    studies = [open_study("s", f"sqlite:///{tmp_path / name}.db", SPACE, 7, {}) for name in ("whole", "lossy")]
    patient: Any = studies[1].study._storage._backend  # type: ignore[attr-defined]
    patient._storage = forgetful = Forgetful(patient._storage)
    forgetful._count = offset
    whole, lossy = (finish(study) for study in studies)
    assert lossy == whole and len(whole) == 7
    tables = [study.table() for study in studies]
    assert tables[0].equals(tables[1]) and "running" not in tables[1]["state"].tolist()
    assert {"_create_new_trial", "set_trial_state_values", "_set_trial_param"} <= forgetful.lost
    assert {"set_trial_intermediate_value", "set_trial_user_attr"} <= forgetful.lost


def test_points_whose_answers_are_lost_are_queued_once(tmp_path: Path, monkeypatch):
    from ham_ray.search import study as module

    monkeypatch.setattr(database, "_PAUSE", 0.0)
    patient, counts = module._Patient, range(6)
    for count in counts:

        def made(storage: Any, count: int = count) -> Any:
            forgetful = Forgetful(storage)
            forgetful._count = count
            return patient(forgetful)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "_Patient", made)
        study = open_study("s", f"sqlite:///{tmp_path / str(count)}.db", SPACE, 7, {})
        states = [trial.state for trial in study.study.get_trials(deepcopy=False)]
        assert states == [TrialState.WAITING] * 2
