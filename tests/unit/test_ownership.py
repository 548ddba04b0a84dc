"""Who may work on a study: one search at a time, until it ends, dies or stands still."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sql

from ham_ray.errors import UserError
from ham_ray.search import ownership
from ham_ray.search.ownership import owned
from ham_ray.search.space import Space
from ham_ray.search.study import open_study

pytestmark = pytest.mark.job
SPACE = Space(family="simple_cnn", parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2}})
OTHER = """
import sys
from ham_ray.search import ownership
from ham_ray.search.ownership import owned
from ham_ray.search.space import Space
from ham_ray.search.study import open_study
ownership.EVERY = 0.1
space = Space(family="simple_cnn", parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2}})
with owned("s", sys.argv[1], "/their/folder") as held:
    study = open_study("s", sys.argv[1], space, 9, {}, ownership=held)
    print(study.ask().number, flush=True)
    for line in sys.stdin:
        print(study.ask().number, flush=True)
"""


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ownership, "EVERY", 0.1)
    monkeypatch.setattr(ownership, "DEAD", 1.0)
    return f"sqlite:///{tmp_path / 'study.db'}"


@contextmanager
def other_search(url: str) -> Iterator[subprocess.Popen]:
    """A process that owns the study and has asked for its first trial."""
    command = [sys.executable, "-c", OTHER, url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    try:
        assert process.stdout.readline() == "0\n"
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def row(url: str, statement: str) -> sql.CursorResult:
    with sql.create_engine(url).begin() as connection:
        return connection.execute(sql.text(statement))


def test_a_second_search_is_refused_and_says_who_owns_the_study(url: str, capsys):
    with other_search(url) as other:
        match = rf"'s' is in use by process {other.pid} on \S+, since 20\d\d-\S+ \S+, in /their/folder; wait"
        with pytest.raises(UserError, match=match), owned("s", url, "/my/folder"):
            pass
        with owned("another", url, "/my/folder"):
            pass
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "1\n"  # the first goes on


def test_a_search_that_ended_leaves_the_study_at_once(url: str, capsys):
    for _ in range(2):
        with owned("s", url, "here"):
            pass
    assert capsys.readouterr().out == ""


def test_a_killed_search_of_this_machine_is_replaced_at_once(url: str, monkeypatch, capsys):
    """Also where nobody has asked for its exit code: its entry in the table of processes is still there."""
    monkeypatch.setattr(ownership, "DEAD", 1e6)
    with other_search(url) as other:
        other.kill()
        with owned("s", url, "here") as held:
            held.check()
    assert f"taken over from process {other.pid}" in capsys.readouterr().out


def test_a_number_of_a_process_that_is_used_again_is_not_its_owner(url: str, monkeypatch, capsys):
    monkeypatch.setattr(ownership, "DEAD", 1e6)
    with other_search(url) as other:
        row(url, "UPDATE ham_ray_owners SET born = '1'")
        with owned("s", url, "here"):
            assert f"taken over from process {other.pid}" in capsys.readouterr().out


def test_a_suspended_search_loses_the_study_and_writes_nothing_more(url: str, capsys):
    with other_search(url) as other:
        other.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        with owned("s", url, "here") as held:
            assert time.monotonic() - started >= ownership.DEAD
            mine = open_study("s", url, SPACE, 9, {}, ownership=held)
            assert mine.ask().number == 0  # it was cut off
            other.send_signal(signal.SIGCONT)
            _, errors = other.communicate("\n", timeout=60)
            assert "another owner now" in errors.splitlines()[-1] and "same command goes on" in errors
            assert len(mine.study.get_trials()) == 1
            mine.complete(0) if mine.report(0, 1, 0.5) else None  # this one can write


def test_of_another_machine_only_signs_of_life_count(url: str, capsys):
    with owned("s", url, "there"):
        row(url, "UPDATE ham_ray_owners SET machine = 'elsewhere', pid = 4194999")
        with pytest.raises(UserError, match="in use by process 4194999"), owned("s", url, "here"):
            pass
    row(url, "INSERT INTO ham_ray_owners VALUES ('s', 'x', 'far', 'elsewhere', 1, '1', '/there', 'long ago', 7)")
    with owned("s", url, "here"):
        out = capsys.readouterr().out
    assert "waiting up to 1 s for its sign of life" in out and "taken over from process 1 on far, since long ago" in out


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_that_start_together_one_gets_the_study(url: str, dead: bool):
    """Also where the owner before them died."""
    with owned("s", url, "there"):
        pass  # the table is there
    if dead:
        values = f"'s', 'x', 'here', '{ownership.machine()}', 4194999, '1', '/there', 'long ago', 7"
        row(url, f"INSERT INTO ham_ray_owners VALUES ({values})")
    start, end, got, refused = threading.Barrier(6), threading.Barrier(6), [], []

    def claim(number: int) -> None:
        start.wait()
        try:
            with owned("s", url, str(number)):
                got.append(number)
                end.wait(timeout=60)
        except UserError:
            refused.append(number)
            end.wait(timeout=60)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 5


def test_a_write_of_a_search_that_lost_its_study_is_rolled_back(url: str):
    """Between its last sign of life and the write another took it."""
    with owned("s", url, "here") as held:
        study = open_study("s", url, SPACE, 9, {}, ownership=held)
        study.ask()
        row(url, "UPDATE ham_ray_owners SET owner = 'thief'")
        for write in (study.ask, lambda: study.report(0, 1, 0.5), lambda: study.fail(0, "no reason"), held.check):
            with pytest.raises(UserError, match="another owner now"):
                write()
    (trial,) = optuna.load_study(study_name="s", storage=url).get_trials()
    assert not trial.intermediate_values and not trial.user_attrs
    assert row(url, "SELECT owner FROM ham_ray_owners").scalar_one() == "thief"  # is not released for it
