"""A barrier after each epoch of a training: its workers wait until whoever watches them decides.

A training that is not to go on ends as one that is finished does, so that Ray Train takes down its workers and their
placement group itself. Killing it from outside leaves that to a watcher that may be gone (Ray #54305).
"""

from __future__ import annotations

import time
from typing import Any

import ray


@ray.remote(num_cpus=0)
class EpochBarrier:
    """The epochs that workers have reported, and how far they may go."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.released, self.stopped = 0, False

    def report(self, history: list[dict[str, Any]]) -> None:
        """Take all rows of HISTORY so far: also those that an interrupted watcher has lost, and some again."""
        self.rows = {row["epoch"]: row for row in history}

    def reported(self) -> dict[int, dict[str, Any]]:
        """Return the rows so far, by epoch."""
        return self.rows

    def release(self, epoch: int) -> None:
        """Let the training go on after this epoch."""
        self.released = max(self.released, epoch)

    def stop(self) -> None:
        """Let the training go on no more."""
        self.stopped = True

    def decision(self, epoch: int) -> bool | None:
        """Say whether the training may go on after this epoch; None while that is not decided."""
        return True if epoch <= self.released else False if self.stopped else None


def wait(barrier: Any, epoch: int) -> bool:
    """Wait until the barrier decides about an epoch; return whether the training may go on."""
    while (decision := ray.get(barrier.decision.remote(epoch))) is None:
        time.sleep(0.05)
    return decision
