"""The study's database: every statement waits for a limited time, with a line, and fails with cause and remedy.

A file that another program has locked is waited for in SQLite itself; a server that is away by calling again what
needed it (`patient`).
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError

from ham_ray.errors import UserError

PATIENCE = 60.0  # seconds that a statement waits for a SQLite file that another program has locked
AWAY = 600.0  # seconds that a server is waited for which does not answer
EVERY = 30.0  # seconds between two lines meanwhile
_PAUSE = 1.0  # seconds between two tries
_SILENCE = 3.0  # seconds until a line says that the database does not answer
_REMEDIES = {  # by a part of the message of SQLite
    "locked": "another program has held it for {patience:.0f} s: end that program (a backup, a viewer)",
    "malformed": "it is damaged: put a copy back, or move it away and start anew (trials.csv keeps the results)",
    "not a database": "it is damaged or something else: put a copy back, or move it away and start anew",
    "no such": "it is damaged or of another program: put a copy back, or move it away and start anew",
    "readonly": "it or its folder cannot be written: give yourself the right to, or take another --out",
    "unable to open": "its folder is missing or cannot be written: give yourself the right to, or take another --out",
    "full": "the disk is full: free some space",
    "disk i/o": "the disk fails or is full: free some space, or move the folder",
}
# Errors after which the same statement may succeed. SQLSTATEs: too many connections; deadlock, serialization; shutting
# down, crashed, starting up. MySQL's numbers: the same, and no connection or a lost one.
_PASSING = {"53300", "40P01", "40001", "57P01", "57P02", "57P03", 1040, 1053, 1205, 1213, 2002, 2003, 2005, 2006, 2013}
_REFUSED = ("authentication failed", "no password supplied", "does not exist", "pg_hba.conf", "no encryption")
# Keeps a host that vanished from being waited for as long as TCP would; parameters of libpq.
_LIBPQ = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# Drivers that a URL without the name of one may mean, the preferred one first; of other databases SQLAlchemy's default.
_DRIVERS = {"postgresql": ("postgresql+psycopg2", "postgresql+psycopg")}
_PACKAGES = {"psycopg": "'ham_ray[postgres]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # by module
_GOES_ON = "the same command goes on"


class StudyError(UserError):
    """A failure to read or write the study's database."""


class AwayError(StudyError):
    """The study's database does not answer for now: what needed it may be called again."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"the study's database {shown(url)} does not answer ({reason}); once it does, {_GOES_ON}")
        self.url, self.reason = url, reason


class NoAnswerError(StudyError):
    """The study's database was waited for, in vain."""

    exit_code = os.EX_TEMPFAIL


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def patient(call: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a function wait for a database that is away, with lines: it is called again until there is an answer.

    What it does must be harmless where it has been done already: the answer to a commit may be what was lost.

    Raises:
        NoAnswerError: there was none for `AWAY` seconds.
    """

    @functools.wraps(call)
    def answered(*arguments: Parameters.args, **more: Parameters.kwargs) -> Result:
        started, lines, failed = time.monotonic(), 0, False
        while True:
            try:
                result = call(*arguments, **more)
            except AwayError as error:
                waited = time.monotonic() - started
                database = f"the study's database {shown(error.url)}"
                if waited >= AWAY:
                    message = f"{database} has not answered for {waited:.0f} s ({error.reason})"
                    raise NoAnswerError(f"{message}; once it does, {_GOES_ON}") from None
                if failed and waited >= lines * EVERY:  # not at once: a connection of the pool may just have broken
                    lines += 1
                    doing = f"waiting, {waited:.0f} s of {AWAY:.0f} s"
                    print(f"{database} does not answer ({error.reason}); {doing}", flush=True)
                time.sleep(_PAUSE if failed else 0)
                failed = True
            else:
                if lines:
                    print(f"{database} answers again, after {time.monotonic() - started:.0f} s", flush=True)
                return result

    return answered


def shown(url: str) -> str:
    """Return the URL without its password."""
    try:
        return sql.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url


def with_driver(url: str) -> str:
    """Add to a URL the name of a driver that is installed; `postgresql://` takes psycopg2 or psycopg.

    Raises:
        StudyError: its driver is not installed; with the package that has it.
        sqlalchemy.exc.ArgumentError: it is no URL, or of no database that SQLAlchemy knows.
    """
    made = sql.make_url(url)
    module: str | None = None
    for name in _DRIVERS.get(made.drivername, (made.drivername,)):
        chosen = made.set(drivername=name)
        try:
            chosen.get_dialect().import_dbapi()
        except ImportError as error:
            module = error.name
        else:
            return chosen.render_as_string(hide_password=False)
    package = _PACKAGES.get(str(module), module)
    raise StudyError(f"the database's driver {module} is not installed: pip install {package}")


def is_file(url: str) -> bool:
    """Say whether the database is a file, on which one search at a time works."""
    return url.startswith("sqlite")


def settings(url: str) -> dict[str, Any]:
    """Return options of `create_engine`: wait for a locked SQLite file, renew a server's connection where it broke."""
    if is_file(url):
        return {"connect_args": {"timeout": PATIENCE}}
    made = sql.make_url(url)
    limits = _LIBPQ if made.get_driver_name() in ("psycopg", "psycopg2") else {}
    own = {name: value for name, value in limits.items() if name not in made.query}
    return {"pool_pre_ping": True, "connect_args": own}


def engine(url: str) -> Engine:
    """Make an engine for the study's database, watched by `watch`.

    Raises:
        StudyError: the URL is malformed, or its driver is not installed.
    """
    try:
        made = sql.create_engine(url, **settings(url))
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise StudyError(f"cannot open the study at {shown(url)}: {_first_line(error)}") from None
    watch(made, url)
    return made


def watch(made: Engine, url: str) -> None:
    """Say when the engine's database keeps a statement waiting, and turn its errors into StudyError."""
    waiting = _Waiting(url)
    event.listen(made, "do_connect", lambda *arguments: waiting.begin())
    event.listen(made, "checkout", lambda *arguments: waiting.begin())
    event.listen(made, "checkin", lambda *arguments: waiting.end())

    @event.listens_for(made, "handle_error")
    def explain(context: ExceptionContext) -> None:
        waiting.end()
        error = context.sqlalchemy_exception
        if context.is_pre_ping or error is None or isinstance(error, IntegrityError):
            return  # a broken connection of the pool, which is replaced; an answer: a row exists already
        raise explained(error, url) from None


def explained(error: Exception, url: str) -> StudyError:
    """Turn an error into one line with its remedy; into an `AwayError` where the database is only away."""
    if isinstance(error.__cause__, SQLAlchemyError):  # within one of Optuna's
        error = error.__cause__
    cause = _first_line(getattr(error, "orig", None) or error)
    if "sqlite" not in url and isinstance(error, DBAPIError) and _is_passing(error):
        return AwayError(url, cause.removeprefix("connection failed: "))
    known = (remedy for part, remedy in _REMEDIES.items() if part in cause.lower()) if "sqlite" in url else iter(())
    remedy = next(known, "see whether the database answers and the study in it is whole").format(patience=PATIENCE)
    return StudyError(f"cannot use the study at {shown(url)}: {cause}; {remedy}; then {_GOES_ON}")


def _is_passing(error: DBAPIError) -> bool:
    """Say whether the same may succeed later: the server cannot be reached, or says so."""
    if error.connection_invalidated:
        return True
    if not isinstance(error, (OperationalError, InterfaceError)):
        return False
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    number = error.orig.args[0] if error.orig and error.orig.args else None
    if state or isinstance(number, int):
        return (state or number) in _PASSING
    return not any(part in str(error.orig) for part in _REFUSED)  # of libpq, without a server's answer


class _Waiting:
    """A watch that prints one line where a thread uses a connection for longer than a statement should take."""

    def __init__(self, url: str) -> None:
        self._url, self._of_thread, self._last = url, threading.local(), -PATIENCE

    def begin(self) -> None:
        if getattr(self._of_thread, "timer", None) is None:  # connecting and using count as one
            self._of_thread.timer = timer = threading.Timer(_SILENCE, self._say)
            timer.daemon = True
            timer.start()

    def end(self) -> None:
        if timer := getattr(self._of_thread, "timer", None):
            timer.cancel()
            self._of_thread.timer = None

    def _say(self) -> None:
        if time.monotonic() - self._last < PATIENCE:
            return
        self._last = time.monotonic()
        limit = f" up to {PATIENCE:.0f} s" if self._url.startswith("sqlite") else ""
        print(f"study at {shown(self._url)}: it is locked or does not answer; waiting{limit} …", flush=True)


def _first_line(error: object) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
