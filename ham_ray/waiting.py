"""What a job waits for: said while nothing comes in, with the nodes that are gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from ham_ray.cluster import Node, alive_nodes, free_cpus
from ham_ray.progress import duration

EVERY = 30.0  # seconds between two lines while nothing comes in
CALM = 300.0  # the same where work has begun and no node is gone: it is only long
_LOOK = 2.0  # seconds between two looks at the nodes


@contextmanager
def watched(what: str, awaited: str) -> Iterator[Callable[[], None]]:
    """Print what the block waits for, since when, and which nodes are gone, while the block does not call back.

    Args:
        what: the work, at the start of each line.
        awaited: what it waits for, with the resources that this needs.
    """
    watch = _Watch(what, awaited)
    done = threading.Event()
    threading.Thread(target=watch.run, args=(done,), daemon=True).start()
    try:
        yield watch.heard
    finally:
        done.set()


class _Watch:
    """A watch that compares the nodes of now with those seen before, and the time with that of the last result."""

    def __init__(self, what: str, awaited: str) -> None:
        self.what, self.awaited = what, awaited
        self.seen: dict[str, Node] = {}
        self.gone: dict[str, datetime] = {}  # node id to when it was missed
        self.begun = False
        self.last, self.clock, self.said = time.monotonic(), datetime.now(), time.monotonic()

    def heard(self) -> None:
        """Note that something came in."""
        self.begun = True
        self.last, self.clock = time.monotonic(), datetime.now()

    def run(self, done: threading.Event) -> None:
        """Look at the nodes and the clock until `done`."""
        while True:
            with suppress(Exception):  # Ray's head does not answer, or Ray was shut down: who waits gets the error
                self.look(alive_nodes(), free_cpus())
            if done.wait(_LOOK):
                return

    def look(self, alive: list[Node], free: float) -> None:
        """Compare these nodes, with so many free CPUs, with those before; say what is waited for once it is time."""
        self._compare(alive)
        now = time.monotonic()
        if now - max(self.last, self.said) >= (CALM if self.begun and not self.gone else EVERY):
            self.said = now
            print(self._line(alive, free, now - self.last), flush=True)

    def _compare(self, alive: list[Node]) -> None:
        """Say which nodes have gone since the last look. One that comes back is a new node at the same address."""
        for node in alive:
            if node.id not in self.seen:
                back = [one for one in self.gone if self.seen[one].address == node.address]
                for one in back[:1]:
                    del self.gone[one], self.seen[one]
        self.seen |= {node.id: node for node in alive}
        for one in self.seen.keys() - {node.id for node in alive} - self.gone.keys():
            self.gone[one] = datetime.now()
            print(f"{self.what}: node {self.seen[one]} is gone", flush=True)

    def _line(self, alive: list[Node], free: float, silent: float) -> str:
        gone = "".join(f"; node {self.seen[one]} is gone since {at:%H:%M:%S}" for one, at in self.gone.items())
        cpus = sum(node.cpus for node in alive)
        return (
            f"{self.what}: waiting for {self.awaited} since {self.clock:%H:%M:%S} ({duration(silent)}){gone}; "
            f"{len(alive)} node(s) with {cpus:g} CPUs are there, {free:g} CPUs free"
        )
