"""The lines of workers, relayed to the job that prints them: without Ray's prefixes and its own chatter."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ham_ray.cluster import this_node
from ham_ray.waiting import watched

TimeLeft = Callable[[int, float], str]  # in words, from the epochs left after one and the seconds that it took


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class LogRelay:
    """A keeper of lines until the job takes them: an epoch's with the epochs left after it, and its seconds.

    Where its process dies it starts again, empty: lines that come later still arrive.
    """

    def __init__(self) -> None:
        self.lines: list[tuple[str, Any]] = []

    def put(self, line: str, *epoch: float) -> None:
        self.lines.append((line, epoch))

    def take(self) -> list[tuple[str, Any]]:
        taken, self.lines = self.lines, []
        return taken


@contextmanager
def relay_logs(what: str, workers: str, time_left: TimeLeft | None = None) -> Iterator[Any]:
    """Make a relay whose lines this process prints until the block ends, and all of them before it ends.

    While no line comes, it prints that `what` waits for these `workers`. An epoch's line ends in what `time_left` says.
    """
    relay = LogRelay.options(scheduling_strategy=this_node()).remote()  # type: ignore[attr-defined]
    done = threading.Event()
    with watched(what, f"the next epoch of {workers}") as heard:
        thread = threading.Thread(target=_print_until, args=(relay, done, heard, time_left), daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            done.set()
            thread.join(timeout=30)
            ray.kill(relay)


def rank0_logger(relay: Any, rank: int, name: str) -> Callable[..., None]:
    """Make the function by which the worker of this rank logs, in the name of its run; only rank 0 logs, for all."""
    return (lambda line, *epoch: relay.put.remote(f"{name}: {line}", *epoch)) if rank == 0 else (lambda *said: None)


def _print_until(relay: Any, done: threading.Event, heard: Callable[[], None], time_left: TimeLeft | None) -> None:
    while True:
        last = done.wait(0.5)
        for line, epoch in ray.get(relay.take.remote()):
            print(f"{line}, {time_left(*epoch)}" if epoch and time_left else line, flush=True)
            heard()
        if last:
            return
