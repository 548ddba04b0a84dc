"""What workers have to say, printed by the job: without Ray's prefixes and its own chatter."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ham_ray.waiting import watched


@ray.remote(num_cpus=0)
class _Mailbox:
    """Keeps lines until the job takes them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def put(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> list[str]:
        taken, self.lines = self.lines, []
        return taken


@contextmanager
def printed(what: str, workers: str) -> Iterator[Any]:
    """A mailbox whose lines this process prints until the block ends, and all of them before it ends.

    Where none come, it says that `what` waits for these `workers`.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = _Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    done = threading.Event()
    with watched(what, f"the next epoch of {workers}") as heard:
        thread = threading.Thread(target=_print_until, args=(mailbox, done, heard), daemon=True)
        thread.start()
        try:
            yield mailbox
        finally:
            done.set()
            thread.join(timeout=30)
            ray.kill(mailbox)


def sender(mailbox: Any, rank: int, name: str) -> Callable[[str], None]:
    """What the worker of this rank says things with, in the name of its run; only the first speaks, for all."""
    return (lambda line: mailbox.put.remote(f"{name}: {line}")) if rank == 0 else (lambda line: None)


def _print_until(mailbox: Any, done: threading.Event, heard: Callable[[], None]) -> None:
    while True:
        last = done.wait(0.5)
        for line in ray.get(mailbox.take.remote()):
            print(line, flush=True)
            heard()
        if last:
            return
