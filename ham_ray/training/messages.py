"""What workers have to say, printed by the job: without Ray's prefixes and its own chatter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

_PATIENCE = 60  # seconds without a word from the workers before the job says so


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
def printed() -> Iterator[Any]:
    """A mailbox whose lines this process prints until the block ends, and all of them before it ends."""
    mailbox = _Mailbox.remote()  # type: ignore[attr-defined]
    done = threading.Event()
    thread = threading.Thread(target=_print_until, args=(mailbox, done), daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        done.set()
        thread.join(timeout=30)
        ray.kill(mailbox)


def sender(mailbox: Any, rank: int) -> Callable[[str], None]:
    """What the worker of this rank says things with; only the first speaks, for all."""
    return (lambda line: mailbox.put.remote(line)) if rank == 0 else (lambda line: None)


def _print_until(mailbox: Any, done: threading.Event) -> None:
    heard = time.monotonic()
    while True:
        last = done.wait(0.5)
        for line in ray.get(mailbox.take.remote()):
            print(line, flush=True)
            heard = time.monotonic()
        if last:
            return
        if time.monotonic() - heard > _PATIENCE:
            heard = time.monotonic()
            free = ray.available_resources().get("CPU", 0)
            print(
                f"no word from the workers for {_PATIENCE} s; {free:g} CPUs are free (`ray status` tells more)",
                flush=True,
            )
