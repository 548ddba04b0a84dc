"""How long a command still takes: durations in words, long steps with their duration, an estimate by what is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from threading import Lock


def duration(seconds: float) -> str:
    """Write a time in words: seconds below two minutes, minutes below two hours, else hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def step(name: str, details: str = "") -> Iterator[None]:
    """Print a line when a long step starts, and its duration when it is done."""
    print(f"{name}{f' ({details})' if details else ''} …", flush=True)
    started = time.monotonic()
    yield
    print(f"{name}: {duration(time.monotonic() - started)}", flush=True)


@dataclass
class Work:
    """A piece of work in units that take about equally long, such as a training of so many epochs.

    Pieces of one `kind` (a family, say) share their pace: what the first took is expected of the next.
    """

    kind: str
    units: int  # that are left


class TimeLeft:
    """An estimate of the time left of a whole command, of which `at_once` pieces of work run together.

    `then` says what follows them, whose time nobody has measured.
    """

    def __init__(self, work: dict[str, Work], at_once: int = 1, then: str = "") -> None:
        self._work, self._at_once, self._then = work, at_once, then
        self._taken: dict[str, list[float]] = {}  # seconds of each unit so far, by kind
        self._lock = Lock()  # work that runs together reports from several threads

    def advance(self, name: str, left: int, seconds: float) -> str:
        """Count a unit that took so many seconds, of a piece of which `left` remain; return the time left in words."""
        with self._lock:
            work = self._work[name]
            work.units = left
            self._taken.setdefault(work.kind, []).append(seconds)
            return self.words()

    def finish(self, name: str) -> None:
        """Expect nothing more of this piece: it is finished, stopped early or failed."""
        self._work[name].units = 0

    def seconds(self) -> float:
        """Estimate the seconds left of all pieces of which a unit, or one of the same kind, has been timed."""
        timed = [work for work in self._work.values() if work.units and work.kind in self._taken]
        total = sum(work.units * fmean(self._taken[work.kind]) for work in timed)
        return total / max(1, min(self._at_once, len(timed)))

    def words(self) -> str:
        """Say `about 40 s left`, then the kinds of which nothing has been timed yet, then what follows all."""
        to_come = dict.fromkeys(work.kind for work in self._work.values() if work.units)
        untimed = [kind for kind in to_come if kind not in self._taken]
        rest = [f"{', '.join(untimed)} (not timed yet)"] * bool(untimed) + [self._then] * bool(self._then)
        if len(untimed) < len(to_come):
            return ", then ".join([f"about {duration(self.seconds())} left", *rest])
        return f"still to come: {', then '.join(rest)}" if rest else "all done"
