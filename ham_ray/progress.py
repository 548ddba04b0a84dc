"""How long a command still takes: durations in words, long steps with their duration, an estimate by what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock


def duration(seconds: float) -> str:
    """The time in words: seconds below two minutes, minutes below two hours, else hours."""
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
    started: float = field(default=0.0, init=False)


class TimeLeft:
    """Estimates the time left of a whole command, of which `at_once` pieces of work run together."""

    def __init__(self, work: dict[str, Work], at_once: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._work, self._at_once, self._clock = work, at_once, clock
        self._spent: dict[str, float] = {}  # seconds by kind, of the units below
        self._done: dict[str, int] = {}
        self._lock = Lock()  # work that runs together reports from several threads

    def start(self, name: str) -> None:
        """Take the time from now on as spent on this piece."""
        self._work[name].started = self._clock()

    def advance(self, name: str, left: int) -> None:
        """Count one more unit of a started piece, of which so many are `left`."""
        with self._lock:
            work, now = self._work[name], self._clock()
            self._spent[work.kind] = self._spent.get(work.kind, 0.0) + now - work.started
            self._done[work.kind] = self._done.get(work.kind, 0) + 1
            work.started, work.units = now, left

    def finish(self, name: str) -> None:
        """Expect nothing more of this piece: it is finished, stopped early or failed."""
        self._work[name].units = 0

    def seconds(self) -> float:
        """The time left of all pieces of which a unit, or one of the same kind, has been timed."""
        timed = (work for work in self._work.values() if work.kind in self._done)
        return sum(work.units * self._spent[work.kind] / self._done[work.kind] for work in timed) / self._at_once

    def untimed(self) -> list[str]:
        """The kinds that are still to come and of which nothing has been timed."""
        kinds = dict.fromkeys(work.kind for work in self._work.values() if work.units)
        return [kind for kind in kinds if kind not in self._done]

    def words(self) -> str:
        """`at most 40 s left` (trainings may stop early), or `40 s left and …` with what nobody has timed yet."""
        left, untimed = duration(self.seconds()), self.untimed()
        return f"{left} left and {', '.join(untimed)}, not timed yet" if untimed else f"at most {left} left"
