"""A study's database that is locked, damaged, full or not writable: a line while it is waited for, then one error."""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import event

from ham_ray.errors import UserError
from ham_ray.search import database
from ham_ray.search.database import StudyError
from ham_ray.search.ownership import owned
from ham_ray.search.space import Space
from ham_ray.search.study import Study, open_study
from ham_ray.workflows.tune import Options

pytestmark = pytest.mark.unit
SPACE = Space(family="simple_cnn", parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2}})


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(database, "PATIENCE", 1.0)
    monkeypatch.setattr(database, "_SILENCE", 0.2)
    return tmp_path / "study.db"


@pytest.fixture
def study(file: Path) -> Study:
    return open_study("s", f"sqlite:///{file}", SPACE, 9, {})


def locked(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def test_a_locked_study_is_waited_for_with_a_line_and_then_named_as_the_cause(study: Study, file: Path, capsys):
    other = locked(file)
    with pytest.raises(StudyError) as raised:
        study.ask()
    other.close()
    message = str(raised.value)
    assert "database is locked; another program has held it for 1 s" in message and "\n" not in message
    assert message.endswith("then the same command goes on") and "invalid data" not in message
    assert (
        capsys.readouterr().out == f"study at sqlite:///{file}: it is locked or does not answer; waiting up to 1 s …\n"
    )
    assert study.ask().number == 0


def test_at_the_start_too(study: Study, file: Path, capsys):
    other = locked(file)
    with pytest.raises(StudyError, match="database is locked"), owned("s", f"sqlite:///{file}", "here"):
        pass
    assert capsys.readouterr().out.count("waiting up to 1 s") == 1
    with pytest.raises(StudyError, match="database is locked"):
        open_study("s", f"sqlite:///{file}", SPACE, 9, {})
    other.close()


def test_one_that_comes_free_in_time_costs_only_time(study: Study, file: Path, capsys):
    other = locked(file)
    started = time.monotonic()
    threading.Timer(0.6, other.close).start()
    assert study.ask().number == 0 and time.monotonic() - started > 0.4
    assert capsys.readouterr().out.count("waiting") == 1


def test_a_commit_that_waits_for_a_reader_says_so_too(study: Study, file: Path, capsys):
    reader = sqlite3.connect(file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM studies").fetchall()
    with pytest.raises(StudyError, match="database is locked"):
        study.ask()
    reader.close()
    assert capsys.readouterr().out.count("waiting") == 1


def test_a_quick_statement_says_nothing_later_either(study: Study, monkeypatch, capsys):
    monkeypatch.setattr(database, "_SILENCE", 600.0)
    study.ask()
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers) and capsys.readouterr().out == ""


def test_a_study_that_is_damaged_during_a_search_is_named(study: Study, file: Path):
    study.ask()
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(StudyError, match=r"study.db: (file is not a database|.*malformed); it is damaged.*put a copy"):
        study.report(0, 1, 0.5)


def test_nor_does_a_table_that_is_gone_end_in_a_traceback(study: Study, file: Path):
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE trials")
    with pytest.raises(StudyError, match="no such table: trials; it is damaged"):
        study.ask()


def test_a_study_that_cannot_be_written_is_named(study: Study, file: Path):
    url = f"sqlite:///file:{file}?mode=ro&uri=true"
    for attempt in (lambda: open_study("other", url, SPACE, 9, {}), lambda: owned("s", url, "here").__enter__()):
        with pytest.raises(StudyError, match="readonly database; it or its folder cannot be written"):
            attempt()


def test_a_full_disk_is_named(study: Study, file: Path):
    """SQLite has the same error for a file that has reached its greatest size."""

    @event.listens_for(study.study._storage._backend.engine, "checkout")
    def no_growth(connection, *more) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    with pytest.raises(StudyError, match="full; the disk is full: free some space; then the same command goes on"):
        for _ in range(500):
            study.note(study.ask().number, run="x" * 1000)


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let only these drivers be there: empty modules that SQLAlchemy can look at."""
    for name in ("psycopg", "psycopg2", "MySQLdb", "pymysql"):
        module = ModuleType(name)
        module.paramstyle = "pyformat"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module if name in names else None)


@pytest.mark.parametrize(
    ("drivers", "url", "expected"),
    [
        (["psycopg"], "postgresql://me:p%40ss@host:5433/db?sslmode=require", "postgresql+psycopg://"),
        (["psycopg2"], "postgresql://me:p%40ss@host:5433/db?sslmode=require", "postgresql+psycopg2://"),
        (["psycopg", "psycopg2"], "postgresql://host/db", "postgresql+psycopg2://"),
        (["psycopg", "psycopg2"], "postgresql+psycopg://host/db", "postgresql+psycopg://"),
        (["MySQLdb"], "mysql://host/db", "mysql://"),
        (["pymysql"], "mysql+pymysql://host/db", "mysql+pymysql://"),
        ([], "sqlite:////a/b.db", "sqlite://"),
    ],
)
def test_a_url_gets_a_driver_that_is_installed_and_keeps_the_rest(monkeypatch, drivers, url: str, expected: str):
    installed(monkeypatch, *drivers)
    assert database.with_driver(url) == expected + url.partition("://")[2]


@pytest.mark.parametrize(
    ("drivers", "url", "missing"),
    [
        ([], "postgresql://me:secret@host/db", "psycopg is not installed: pip install 'ham_ray[postgres]'"),
        (["psycopg"], "postgresql+psycopg2://host/db", "psycopg2 is not installed: pip install psycopg2-binary"),
        (["psycopg"], "mysql://host/db", "MySQLdb is not installed: pip install mysqlclient"),
        ([], "mysql+pymysql://host/db", "pymysql is not installed: pip install pymysql"),
    ],
)
def test_a_driver_that_is_not_installed_is_named_before_anything_starts(monkeypatch, drivers, url: str, missing: str):
    installed(monkeypatch, *drivers)
    with pytest.raises(UserError) as raised:
        Options(storage=url)._check_storage()
    shown = url.replace("secret", "…")
    assert str(raised.value) == f"--storage {shown}: the database's driver {missing}"


def test_passwords_are_not_shown():
    assert database.shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    error = database.explained(RuntimeError("no answer"), "postgresql://me:secret@host/db")
    assert "secret" not in str(error) and "see whether the database answers" in str(error)
    with pytest.raises(StudyError, match="cannot open the study at nonsense"):
        database.engine("nonsense")
