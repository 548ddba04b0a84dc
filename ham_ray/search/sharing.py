"""Several drivers work on a study in a server's database: each trial is one driver's, and so are the finals.

A driver is a row among the owners with a sign of life; what it works on are its leases. Whoever wants a lease of a
driver that is gone, or gave no sign while the one that looks gave those of a minute, removes the row and all its
leases. So a driver that stood still can write nothing more: each of its writes first looks whether the row is there.
Time is counted in own signs of life: while the database is away nobody gives any, and nobody is taken for dead.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import sqlalchemy as sql
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import IntegrityError

from ham_ray.errors import UserError
from ham_ray.search import database, ownership
from ham_ray.search.database import StudyError
from ham_ray.search.ownership import OWNERS, Owner, Ownership

_TOLD = 30.0  # seconds between two lines while a lease is waited for
_LEASES = sql.Table(
    "ham_ray_leases",
    sql.MetaData(),
    sql.Column("name", sql.String(600), primary_key=True),  # study/what
    sql.Column("owner", sql.String(32), nullable=False),
)


class Membership(Ownership):
    """This process as one of a study's drivers, with its leases."""

    _lost_what = "its trials; the same command takes part again"

    def __init__(self, engine: Engine, study: str, me: Owner) -> None:
        super().__init__(engine, study, me)
        self._seen: dict[str, tuple[int, int]] = {}  # by owner: its signs of life, and own ones since when

    @database.patient
    def take(self, what: str) -> bool:
        """Take a lease that nobody has, or a driver without a sign of life. False where somebody has it."""
        if what in self._taken:
            return False
        try:
            with self._engines[0].begin() as connection:
                self._sign(connection)
                holder = self._owner_of(connection, what)
                if holder != self._me.owner:  # else the answer to an earlier try was lost
                    if holder is not None and not self._buried(connection, holder):
                        return False
                    connection.execute(_LEASES.insert().values(name=self._name(what), owner=self._me.owner))
        except IntegrityError:
            return False  # another was first
        self._taken.add(what)
        return True

    @database.patient
    def leave(self, what: str) -> None:
        """Let any driver have it."""
        self._leave(what)

    @database.patient
    def holder(self, what: str) -> str:
        """Who has a lease, in words."""
        with self._engines[0].begin() as connection:
            row = _row(connection, self._owner_of(connection, what) or "")
        return "nobody" if row is None else str(row)

    @database.patient
    def alone(self) -> bool:
        """Whether no other driver may be at work; those that are gone are removed."""
        with self._engines[0].begin() as connection:
            others = {row.owner for row in _drivers(connection, self._study)} - {self._me.owner}
            return all([self._buried(connection, owner) for owner in others])

    @contextmanager
    def holding(self, what: str) -> Iterator[None]:
        """Have a lease while the block runs; waited for, with lines that say for whom."""
        told = time.monotonic()
        while not self.take(what):
            if time.monotonic() - told >= _TOLD:
                told = time.monotonic()
                print(f"study {self._study!r}: waiting for {what} of {self.holder(what)}", flush=True)
            time.sleep(ownership.EVERY / 6)
        try:
            yield
        except BaseException:
            with contextlib.suppress(StudyError):  # of a database that is away: what was raised is waited for
                self._leave(what)
            raise
        self.leave(what)

    def _leave(self, what: str) -> None:
        self._taken.discard(what)
        mine = (_LEASES.c.name == self._name(what)) & (_LEASES.c.owner == self._me.owner)
        with self._engines[0].begin() as connection:
            connection.execute(_LEASES.delete().where(mine))

    def _name(self, what: str) -> str:
        return f"{self._study}/{what}"

    def _owner_of(self, connection: Connection, what: str) -> str | None:
        return connection.execute(sql.select(_LEASES.c.owner).where(_LEASES.c.name == self._name(what))).scalar()

    def _buried(self, connection: Connection, owner: str) -> bool:
        """Remove a driver and its leases; False where it lives."""
        row = _row(connection, owner)
        if row is not None:
            if not (row.gone() or self._is_still(row)):
                return False
            same = (OWNERS.c.owner == owner) & (OWNERS.c.beats == row.beats)
            if connection.execute(OWNERS.delete().where(same)).rowcount == 0:
                return False
            print(f"study {self._study!r}: taking over from {row}, which is gone", flush=True)
        connection.execute(_LEASES.delete().where(_LEASES.c.owner == owner))
        return True

    def _is_still(self, row: Owner) -> bool:
        """Whether a driver gave no sign of life while this one gave those of `DEAD` seconds."""
        beats, since = self._seen.get(row.owner, (-1, 0))
        if beats != row.beats:
            self._seen[row.owner] = (row.beats, self._signs)
            return False
        return self._signs - since >= ownership.DEAD / ownership.EVERY

    def _forget(self, connection: Connection) -> None:
        connection.execute(_LEASES.delete().where(_LEASES.c.owner == self._me.owner))
        super()._forget(connection)


@contextmanager
def joined(study: str, url: str, folder: str) -> Iterator[Membership]:
    """Be one of a study's drivers while the block runs.

    Raises:
        UserError: a driver works on it in another folder: what trials and finals leave there has to be shared.
        StudyError: the database cannot be used.
    """
    engine = database.engine(url)
    for table in (OWNERS, _LEASES):
        ownership.create_table(engine, table)
    me = ownership.this_process(study, folder)
    me = replace(me, study=f"{study}/{me.owner}")
    _insert(engine, me)
    held = Membership(engine, study, me)
    try:
        _check_folders(held, engine, study, me)
        yield held
    finally:
        held.release()


@database.patient
def _insert(engine: Engine, me: Owner) -> None:
    with engine.begin() as connection:
        if _row(connection, me.owner) is None:
            connection.execute(OWNERS.insert().values(**vars(me)))


def _check_folders(held: Membership, engine: Engine, study: str, me: Owner) -> None:
    """Refuse a study on which a living driver works elsewhere."""
    first: dict[str, Owner] = {}
    told = 0
    while True:
        others = [row for row in _read(engine, study) if row.folder != me.folder and not row.gone()]
        for row in others:
            if row.beats != first.setdefault(row.owner, row).beats:
                raise UserError(
                    f"study {study!r} is in use by {row}; take the same --out, a folder that all drivers see, or "
                    "another --name"
                )
        if not others or all([held._is_still(row) for row in others]):
            return
        if len(first) > told:
            told = len(first)
            words = "; ".join(map(str, others))
            print(f"study {study!r}: waiting up to {ownership.DEAD:.0f} s for a sign of life of {words}", flush=True)
        time.sleep(ownership.EVERY / 6)


@database.patient
def _read(engine: Engine, study: str) -> list[Owner]:
    with engine.begin() as connection:
        return _drivers(connection, study)


def _drivers(connection: Connection, study: str) -> list[Owner]:
    named = (OWNERS.c.study == study) | OWNERS.c.study.startswith(f"{study}/", autoescape=True)
    return [Owner(**row._mapping) for row in connection.execute(OWNERS.select().where(named))]


def _row(connection: Connection, owner: str) -> Owner | None:
    row = connection.execute(OWNERS.select().where(OWNERS.c.owner == owner)).one_or_none()
    return None if row is None else Owner(**row._mapping)
