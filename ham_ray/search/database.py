"""The study's database: each statement waits for a limited time, says so, and fails with cause and remedy."""

from __future__ import annotations

import threading
import time
from typing import Any

import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from ham_ray.errors import UserError

PATIENCE = 60.0  # seconds that a statement waits for a SQLite file that another program has locked
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


class StudyError(UserError):
    """A failure to read or write the study's database."""


def shown(url: str) -> str:
    """Return the URL without its password."""
    try:
        return sql.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url


def settings(url: str) -> dict[str, Any]:
    """Return options of `create_engine`: wait for a locked SQLite file, renew a server's connection where it broke."""
    return {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {"pool_pre_ping": True}


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
        if error is not None and not isinstance(error, IntegrityError):  # those are answers: a row exists already
            raise explained(error, url) from None


def explained(error: Exception, url: str) -> StudyError:
    """Turn an error of the database into one line with its remedy."""
    cause = _first_line(getattr(error, "orig", None) or error)
    known = (remedy for part, remedy in _REMEDIES.items() if part in cause.lower()) if "sqlite" in url else iter(())
    remedy = next(known, "see whether the database answers and the study in it is whole").format(patience=PATIENCE)
    return StudyError(f"cannot use the study at {shown(url)}: {cause}; {remedy}; then the same command goes on")


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
