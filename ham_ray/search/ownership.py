"""Ownership of a study: one search at a time works on it, recorded as a row in the study's own database.

The owner increases a count in its row every few seconds, as a sign of life. Another search that sees the row waits for
the next sign: where one comes, that search is refused; where none comes for a minute, or the owner was a process of
this machine that has ended, it becomes the owner itself. An owner that stood still for that long (a suspended process)
can write nothing more: before each write it checks, in the same transaction, whether the row is still its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from ham_ray.errors import UserError
from ham_ray.search import database
from ham_ray.search.database import StudyError
from ham_ray.search.leases import Leases

EVERY = 3.0  # seconds between signs of life
DEAD = 60.0  # seconds without one after which an owner has lost its study
_WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE")
OWNERS = sql.Table(
    "ham_ray_owners",
    sql.MetaData(),
    sql.Column("study", sql.String(512), primary_key=True),
    sql.Column("owner", sql.String(32), nullable=False),  # new with each start
    sql.Column("host", sql.String(255), nullable=False),
    sql.Column("machine", sql.String(255), nullable=False),  # within which a pid means one process
    sql.Column("pid", sql.Integer, nullable=False),
    sql.Column("born", sql.String(32), nullable=False),  # of the process: a pid is used again
    sql.Column("folder", sql.Text, nullable=False),
    sql.Column("since", sql.String(32), nullable=False),
    sql.Column("beats", sql.Integer, nullable=False),  # signs of life: no clocks of two machines are compared
)


@dataclass(frozen=True)
class Owner:
    """A row of the table of owners: the process that works on a study."""

    study: str
    owner: str
    host: str
    machine: str
    pid: int
    born: str
    folder: str
    since: str
    beats: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}, in {self.folder}"

    def gone(self) -> bool:
        """Say whether the owner was a process of this machine that has ended."""
        return self.machine == machine() and born(self.pid) != self.born


class Ownership(Leases):
    """This process's hold on a study."""

    _lost_what = "the study; once that one has ended the same command goes on"

    def __init__(self, engine: Engine, study: str, me: Owner) -> None:
        super().__init__()
        self._study = study
        self._engines, self._me, self._ended = [engine], me, threading.Event()
        self._lost, self._signs = False, 0  # of life, that the thread below has given
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @database.patient
    def check(self) -> None:
        """Check that the study is still this process's.

        Raises:
            UserError: another process has taken it over.
        """
        self._check()

    def _check(self) -> None:
        with self._engines[0].begin() as connection:
            self._sign(connection)

    def guard(self, engine: Engine) -> None:
        """Check before each write through this engine, in its transaction, that the study is still this process's.

        Its connections are closed when the study is left.
        """
        self._engines.append(engine)

        @event.listens_for(engine, "before_cursor_execute")
        def look(connection: Connection, cursor: Any, statement: str, *more: Any) -> None:
            if statement.lstrip()[:7].upper().startswith(_WRITES) and OWNERS.name not in statement:
                self._sign(connection)

    def release(self) -> None:
        """Leave the study to the next search.

        Where the database fails now the row stays, and counts as dead once this process has ended.
        """
        self._ended.set()
        self._thread.join(timeout=EVERY)
        with contextlib.suppress(StudyError), self._engines[0].begin() as connection:
            self._forget(connection)
        for engine in self._engines:
            engine.dispose()

    def _forget(self, connection: Connection) -> None:
        connection.execute(OWNERS.delete().where(OWNERS.c.owner == self._me.owner))

    def _sign(self, connection: Connection) -> None:
        mine = OWNERS.c.owner == self._me.owner
        living = OWNERS.update().where(mine).values(beats=OWNERS.c.beats + 1)
        if self._lost or connection.execute(living).rowcount == 0:
            self._lost = True
            raise UserError(
                f"study {self._study!r} has another owner now: this process stood still for over {DEAD:.0f} s "
                f"(suspended?) and another search took over {self._lost_what}"
            )

    def _beat(self) -> None:
        while not self._ended.wait(EVERY):
            try:
                self._check()
                self._signs += 1
            except StudyError:
                continue  # a database that fails: whoever needs it next says so
            except UserError:
                return


@contextmanager
def owned(study: str, url: str, folder: str) -> Iterator[Ownership]:
    """Own a study while the block runs.

    Raises:
        UserError: another search works on the study; the message names its process, its machine and its start.
        StudyError: the database cannot be used.
    """
    engine = database.engine(url)
    me = this_process(study, folder)
    _claim(engine, me)
    held = Ownership(engine, study, me)
    try:
        yield held
    finally:
        held.release()


def this_process(study: str, folder: str) -> Owner:
    """Make the row of this process."""
    pid, now = os.getpid(), datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return Owner(study, uuid.uuid4().hex, socket.gethostname(), machine(), pid, born(pid) or "", folder, now, 0)


def _claim(engine: Engine, me: Owner) -> None:
    """Become the owner, once there is none or the present one shows no sign of life; refuse where it shows one."""
    create_table(engine, OWNERS)
    seen, since = None, time.monotonic()
    while True:
        owner = _owner(engine, me.study)
        if owner is not None and owner.owner == me.owner:
            return  # the database had taken the row before its answer was lost
        if owner is None:
            if _insert(engine, me):
                return
        elif owner.gone() or (owner == seen and time.monotonic() - since >= DEAD):
            if _replace(engine, me, owner):
                print(f"study {me.study!r}: taken over from {owner}, which is gone", flush=True)
                return
        elif seen is None:
            seen = owner
            print(f"study {me.study!r}: owned by {owner}; waiting up to {DEAD:.0f} s for its sign of life", flush=True)
        elif owner != seen:
            raise UserError(
                f"study {me.study!r} is in use by {owner}; wait for that search or end it, or take another --name"
            )
        else:
            time.sleep(EVERY / 6)


@database.patient
def create_table(engine: Engine, table: sql.Table) -> None:
    """Make a table where there is none."""
    try:
        table.create(engine, checkfirst=True)
    except IntegrityError:
        pass  # on PostgreSQL: another process created it just now
    except StudyError as error:
        if "already exists" not in str(error):
            raise


@database.patient
def _owner(engine: Engine, study: str) -> Owner | None:
    with engine.begin() as connection:
        row = connection.execute(OWNERS.select().where(OWNERS.c.study == study)).one_or_none()
    return None if row is None else Owner(**row._mapping)


@database.patient
def _insert(engine: Engine, me: Owner) -> bool:
    try:
        with engine.begin() as connection:
            connection.execute(OWNERS.insert().values(**vars(me)))
    except IntegrityError:
        return False  # another was first
    return True


@database.patient
def _replace(engine: Engine, me: Owner, other: Owner) -> bool:
    """Take the row over if it has not changed since it was read; say whether it was taken."""
    same = (OWNERS.c.owner == other.owner) & (OWNERS.c.beats == other.beats)
    with engine.begin() as connection:
        return connection.execute(OWNERS.update().where(same).values(**vars(me))).rowcount == 1


def machine() -> str:
    """Name what has its own numbers of processes: this start of this machine, and within it a container."""
    boot, container = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # systems other than Linux
        parts += [boot.read_text().strip(), str(container.readlink())]
    return " ".join(parts)[:255]


def born(pid: int) -> str | None:
    """Read when a process of this machine started, in words of the kernel; None where there is none or it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""  # nothing to compare: the pid alone
    return None if fields[0] in "ZX" else fields[19]
