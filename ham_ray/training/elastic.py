"""Elastic trainings: as many workers as there are nodes for, fewer after one is lost, more after an epoch's end.

The batches do not depend on the number of workers, so neither does what is learned. Each change of their number starts
them again from the latest checkpoint: TensorFlow's strategies have a fixed number of workers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from ham_ray.cluster import Resources, WorkerRange, alive_nodes, cluster_resources, this_node
from ham_ray.errors import UserError
from ham_ray.waiting import watched

_LOOK = 5.0  # seconds between two looks at the nodes
SETTLED = 20.0  # seconds in which Ray takes a node for lost whose workers have failed


@ray.remote(num_cpus=0)
class EpochsEnd:
    """Where the workers of an elastic training ask whether to go on: they stop after an epoch, all after the same."""

    def __init__(self) -> None:
        self.stopping, self.decided = False, {}  # type: ignore[var-annotated]

    def stop(self) -> None:
        """Let the epoch that runs be the last."""
        self.stopping = True

    def may_go_on(self, epoch: int) -> bool:
        """Say whether to train another epoch after so many; the first worker that asks decides for all."""
        return self.decided.setdefault(epoch, not self.stopping)


def fitting(workers: WorkerRange, batch_size: int) -> Resources | None:
    """Choose the most workers that divide the batch, one a node, or one a GPU where there are any; None: no room."""
    nodes = alive_nodes()
    room = sum(node.gpus for node in nodes) or sum(node.cpus > 0 for node in nodes)
    for count in workers.counts(batch_size):
        if count > room:
            continue
        try:
            return cluster_resources(count, workers.cpus_each)
        except UserError:
            continue
    return None


def wait_for_nodes(workers: WorkerRange, batch_size: int) -> Resources:
    """Choose the workers once there are nodes for the fewest."""
    with watched("elastic training", f"nodes for at least {workers.least} worker(s)"):
        while (result := fitting(workers, batch_size)) is None:
            time.sleep(_LOOK)
    return result


def settle(nodes: int) -> None:
    """Wait until there are fewer nodes than so many, or for long enough to know that none of them is lost."""
    deadline = time.monotonic() + SETTLED
    while len(alive_nodes()) >= nodes and time.monotonic() < deadline:
        time.sleep(1.0)


@contextmanager
def growing(workers: int, fit: Callable[[], Resources | None]) -> Iterator[Any]:
    """Make the actor that the workers ask, and let them stop at an epoch's end once there is room for more of them."""
    end = EpochsEnd.options(scheduling_strategy=this_node()).remote()  # type: ignore[attr-defined]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK):
            with suppress(Exception):  # Ray's head does not answer: who trains gets the error
                larger = fit()
                if larger is not None and larger.workers > workers:
                    ray.get(end.stop.remote())
                    print(
                        f"elastic training: room for {larger.workers} workers, from the end of this epoch", flush=True
                    )
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield end
    finally:
        done.set()
        thread.join(timeout=30)
        ray.kill(end)
