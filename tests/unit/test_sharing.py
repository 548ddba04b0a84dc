"""Several drivers of one study: every trial once, whoever dies, and finals by one of them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql
from optuna.trial import TrialState
from postgres import lacking, server

from ham_ray.errors import UserError
from ham_ray.search import database, ownership
from ham_ray.search import study as study_module
from ham_ray.search.database import AwayError
from ham_ray.search.sharing import Membership, joined
from ham_ray.search.space import Space
from ham_ray.search.study import Study, open_study

pytestmark = pytest.mark.job
SPACE = Space(
    family="simple_cnn",
    scheduler={"name": "none"},
    parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2}},
    points=[{"learning_rate": 1e-3}, {"learning_rate": 2e-3}],
)
OTHER = """
import sys
from ham_ray.search.sharing import joined
from ham_ray.search.space import Space
from ham_ray.search.study import open_study
space = Space(family="simple_cnn", parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2}})
with joined("s", sys.argv[1], "runs/s") as held:
    ask = open_study("s", sys.argv[1], space, 2, {}, ownership=held).ask()
    print(ask.number, ask.values["learning_rate"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    if reason := lacking():
        pytest.skip(reason)
    with server() as made:
        yield database.with_driver(made.url)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The mechanism needs nothing of a server that SQLite lacks."""
    monkeypatch.setattr(ownership, "EVERY", 0.1)
    monkeypatch.setattr(ownership, "DEAD", 4.0)
    monkeypatch.setattr(study_module, "_LOOK", 0.1)
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    url = request.getfixturevalue("server_url")
    execute(url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return url


def execute(url: str, statement: str) -> None:
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sql.text(statement))
    engine.dispose()


@pytest.fixture
def drivers(url: str) -> Iterator[list[Membership]]:
    """Two drivers of a study."""
    with ExitStack() as stack:
        yield [stack.enter_context(joined("s", url, "runs/s")) for _ in range(2)]


def opened(url: str, held: Membership, trials: int = 4) -> Study:
    with held.holding("the start"):
        return open_study("s", url, SPACE, trials, {}, ownership=held)


def finish(study: Study, number: int) -> None:
    study.report(number, 1, 0.5)
    study.complete(number)


def test_two_drivers_share_the_trials_and_none_is_run_twice(url: str, drivers: list[Membership]):
    ran: list[tuple[int, float]] = []
    errors: list[BaseException] = []
    barrier = threading.Barrier(2)

    def drive(held: Membership) -> None:
        try:
            study = opened(url, held, trials=9)
            barrier.wait(60)
            while ask := study.ask():
                ran.append((ask.number, float(ask.values["learning_rate"])))
                finish(study, ask.number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=drive, args=(held,)) for held in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(number for number, _ in ran) == [*range(9)]
    assert Counter(rate for _, rate in ran)[1e-3] == 1 == Counter(rate for _, rate in ran)[2e-3]
    table = opened(url, drivers[0]).table()
    assert len(table) == 9 and set(table["state"]) == {"complete"}


def test_a_trial_that_runs_elsewhere_is_waited_for_and_not_run_again(url: str, drivers: list[Membership], capsys):
    first, second = (opened(url, held, trials=1) for held in drivers)
    number = first.ask().number
    assert second.ask() is None and second.open() == 1
    threading.Timer(1.0, finish, (first, number)).start()
    assert not second.has_work() and second.finished() == 1
    assert f"trial {number} in process" in capsys.readouterr().out


def test_a_trial_that_its_driver_ended_while_another_looked_is_not_run_again(url: str, drivers, monkeypatch):
    first, second = (opened(url, held, trials=1) for held in drivers)
    number, take = first.ask().number, Membership.take

    def taken(self: Membership, what: str) -> bool:
        if self is drivers[1] and what == f"trial {number}" and first.is_running(number):
            finish(first, number)
            drivers[0].leave(what)
        return take(self, what)

    monkeypatch.setattr(Membership, "take", taken)
    assert second.ask() is None and second.finished() == 1


def test_a_trial_that_was_to_be_stopped_when_its_driver_left_is_ended(url: str, drivers: list[Membership], capsys):
    first, second = (opened(url, held, trials=1) for held in drivers)
    number = first.ask().number
    first.report(number, 1, 0.1)
    first.note(number, **{study_module.STOPPED: True})
    drivers[0].leave(f"trial {number}")
    assert not second.has_work() and second.ask() is None and "waiting" not in capsys.readouterr().out
    assert second.study.get_trials()[number].state == TrialState.PRUNED


def test_a_driver_that_leaves_leaves_its_trial_to_the_others(url: str):
    with joined("s", url, "runs/s") as stays:
        with joined("s", url, "runs/s") as leaves:
            begun = opened(url, leaves, trials=1).ask()
            study = opened(url, stays, trials=1)
            assert study.ask() is None
        assert study.has_work() and study.ask() == begun


def test_a_killed_drivers_trial_goes_on_in_another_one_under_its_number(url: str, monkeypatch, capsys):
    monkeypatch.setattr(ownership, "DEAD", 1e6)
    command = [sys.executable, "-c", OTHER, url]
    other = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    number, rate = other.stdout.readline().split()
    with joined("s", url, "runs/s") as held:
        space = SPACE.model_copy(update={"points": []})
        study = open_study("s", url, space, 1, {}, ownership=held)
        assert study.ask() is None and not held.alone()
        other.kill()
        other.communicate()
        assert study.has_work()
        ask = study.ask()
        assert (ask.number, ask.values["learning_rate"]) == (int(number), float(rate)) and study.ask() is None
        assert f"taking over from process {other.pid}" in capsys.readouterr().out and held.alone()


def test_a_driver_of_another_machine_that_stands_still_loses_its_trials_and_writes_nothing_more(url: str, drivers):
    lost, living = drivers
    stands, goes_on = opened(url, lost, trials=2), opened(url, living, trials=2)
    begun, own = stands.ask(), goes_on.ask()
    execute(url, "UPDATE ham_ray_owners SET machine = 'elsewhere'")
    lost._ended.set()  # no more signs of life
    lost._thread.join()
    assert goes_on.ask() is None  # not at once
    finish(goes_on, own.number)
    assert goes_on.has_work() and goes_on.ask() == begun
    for write in (lambda: stands.report(begun.number, 1, 0.9), stands.ask, lambda: lost.take("x"), lost.check):
        with pytest.raises(UserError, match="study 's' has another owner now.* took over its trials; the same command"):
            write()
    finish(goes_on, begun.number)
    assert [trial.intermediate_values for trial in goes_on.study.get_trials()] == [{1: 0.5}] * 2


def test_nobody_is_taken_for_dead_because_the_database_was_away(url: str, drivers: list[Membership], monkeypatch):
    first, second = (opened(url, held, trials=1) for held in drivers)
    number = first.ask().number
    execute(url, "UPDATE ham_ray_owners SET machine = 'elsewhere'")
    assert second.ask() is None  # it has looked
    away = threading.Event()
    away.set()
    check = Membership._check

    def checked(self: Membership) -> None:
        if away.is_set():
            raise AwayError(url, "connection refused")
        check(self)

    monkeypatch.setattr(Membership, "_check", checked)
    threading.Event().wait(ownership.DEAD + 1.0)
    assert second.ask() is None
    away.clear()
    for _ in range(10):
        assert second.ask() is None
    finish(first, number)


def test_drivers_in_another_folder_are_refused_while_others_live(url: str):
    with joined("s", url, "/there"):
        execute(url, "UPDATE ham_ray_owners SET machine = 'elsewhere'")
        with pytest.raises(UserError, match="in use by .* in /there; take the same --out"), joined("s", url, "/here"):
            pass
        with joined("another", url, "/here"), joined("s", url, "/there"):
            pass
    values = "'s/x', 'x', 'far', 'elsewhere', 1, '1', '/there', 'long ago', 7"
    execute(url, f"INSERT INTO ham_ray_owners VALUES ({values})")
    with joined("s", url, "/here"):
        pass


def test_finals_are_one_drivers_until_it_ends(url: str, drivers: list[Membership]):
    first, second = drivers
    assert first.take("finals") and not second.take("finals") and not first.take("finals")
    assert second.holder("finals").startswith("process ") and second.holder("nothing") == "nobody"
    first.leave("finals")
    assert second.take("finals")


def test_a_lease_whose_answer_was_lost_is_held(url: str, drivers: list[Membership], monkeypatch):
    first, second = drivers
    monkeypatch.setattr(database, "_PAUSE", 0.0)
    begin, lost = first._engines[0].begin, []

    class Lossy:
        def __init__(self) -> None:
            self.inner = begin()

        def __enter__(self) -> Any:
            return self.inner.__enter__()

        def __exit__(self, *error: Any) -> None:
            self.inner.__exit__(*error)
            if not lost:
                lost.append(1)
                raise AwayError(url, "connection reset")

    monkeypatch.setattr(first._engines[0], "begin", Lossy)
    assert first.take("a") and lost and not second.take("a")


def test_states_of_a_study_with_two_drivers_never_leave_one_running(url: str, drivers: list[Membership]):
    first, second = (opened(url, held, trials=3) for held in drivers)
    asked = [first.ask(), second.ask(), first.ask()]
    assert [ask.number for ask in asked] == [0, 1, 2] and second.ask() is None
    first.interrupted(2)
    assert second.ask() == asked[2]
    for study, number in ((first, 0), (second, 1), (second, 2)):
        finish(study, number)
    assert {trial.state for trial in first.study.get_trials()} == {TrialState.COMPLETE}
