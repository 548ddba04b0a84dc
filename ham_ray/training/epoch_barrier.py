"""A gate between a training and whoever watches it: its workers wait after each epoch for leave to go on.

A training that is not to go on ends as one that is finished does, so that Ray Train takes down its workers and their
placement group itself. Killing it from outside leaves that to a watcher that may be gone (Ray #54305).
"""

from __future__ import annotations

import time
from typing import Any

import ray


@ray.remote(num_cpus=0)
class Gate:
    """What was told of each epoch, and how far the training may go."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.leave, self.shut = 0, False

    def tell(self, history: list[dict[str, Any]]) -> None:
        """All rows of HISTORY so far: those that nobody heard before a kill, and some again."""
        self.rows = {row["epoch"]: row for row in history}

    def told(self) -> dict[int, dict[str, Any]]:
        """The rows so far, by epoch."""
        return self.rows

    def allow(self, epoch: int) -> None:
        """Let the training go on after this epoch."""
        self.leave = max(self.leave, epoch)

    def close(self) -> None:
        """Let it go on no more."""
        self.shut = True

    def verdict(self, epoch: int) -> bool | None:
        """Whether it may go on after this epoch; None while nobody has said."""
        return True if epoch <= self.leave else False if self.shut else None


def may_go_on(gate: Any, epoch: int) -> bool:
    """Wait for the verdict."""
    while (verdict := ray.get(gate.verdict.remote(epoch))) is None:
        time.sleep(0.05)
    return verdict
