"""A trial of several workers: Ray Train inside Tune, stopped after an epoch so that nothing of it stays behind."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import ray
import ray.train
from ray import tune
from ray.exceptions import RayError, RayTaskError

from ham_ray.cluster import Resources, configure_data, this_node
from ham_ray.data.images import Images
from ham_ray.errors import in_words
from ham_ray.search.controller import reason
from ham_ray.search.trial import Shared, scores, table_key
from ham_ray.training import input_pipeline, workers
from ham_ray.training.epoch_barrier import EpochBarrier


class DistributedTrial(tune.Trainable):
    """A trial of several workers: each step is one epoch, with the results of a step of `InProcessTrial`."""

    thread: threading.Thread | None
    epoch: int  # the last that Tune has heard of
    last: int  # of the trial

    def setup(  # type: ignore[override]  # Tune passes the others
        self,
        config: dict[str, Any],
        shared: Shared,
        images: Images,
        resources: Resources,
        shard_memory: float,
        restarts: int,
    ) -> None:
        configure_data()
        self.shared, self.images, self.resources = shared, images, resources
        self.shard_memory, self.restarts = shard_memory, restarts
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial, after the workers of the last one have ended."""
        self.cleanup()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Let the workers go on, and wait for their next epoch.

        Raises:
            RayError: a process of the trial that Ray Train does not restart is gone; Tune starts the trial again.
        """
        if self.thread is None:
            self.thread = threading.Thread(target=self._train, daemon=True)
            self.thread.start()
        else:
            ray.get(self.barrier.release.remote(self.epoch))
        rows = self._next_rows()
        if self.lost is not None:
            raise self.lost
        finished = not self.thread.is_alive() and not self.failed
        self.epoch = max(rows, default=0)
        return {
            "failed": self.failed,
            "finished": finished,
            "scores": scores(list(rows.values()), self.shared.base),
            "seconds": sum(row["seconds"] for row in rows.values()),
            "done": finished or bool(self.failed),
        }

    def cleanup(self) -> None:
        """End the workers: they stop at the barrier, and Ray Train takes down what it started."""
        if self.thread is not None:
            with contextlib.suppress(RayError):  # the barrier is gone, and with it what would let the workers go on
                ray.get(self.barrier.stop.remote())
            self.thread.join()
            ray.kill(self.barrier)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: the training writes its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing: the training goes on from its own checkpoints."""

    def _begin(self, config: dict[str, Any]) -> None:
        self.folder = self.shared.folder(config["trial"])
        self.values, self.failed, self.epoch = config["values"], "", 0
        self.lost: RayError | None = None
        self.last = self.values.get("epochs", self.shared.base.epochs)
        self.barrier: Any = EpochBarrier.options(scheduling_strategy=this_node()).remote()  # type: ignore[attr-defined]
        self.thread = None

    def _next_rows(self) -> dict[int, dict[str, Any]]:
        """Return the rows so far, once there is a new one and the training stands at the barrier, or has ended."""
        assert self.thread is not None
        while self.thread.is_alive():
            rows = ray.get(self.barrier.reported.remote())
            if self.epoch < max(rows, default=0) < self.last:
                return rows
            time.sleep(0.05)
        return ray.get(self.barrier.reported.remote())

    def _train(self) -> None:
        try:
            recipe = self.shared.recipe(self.values)
            tables = self.shared.tables.get(table_key(recipe))
            parts = input_pipeline.split(self.images, recipe, self.resources.workers, self.shard_memory, tables)
            weights = ray.get(self.shared.weights)
            outcome = workers.train(
                recipe, self.images, parts, weights, self.resources, self.folder, self.barrier, self.restarts
            )
            self.failed = outcome.failed or ""
        except ray.train.TrainingFailedError as error:
            self.failed = in_words(error)
        except RayError as error:
            if isinstance(error, RayTaskError):  # what was raised in a task would be raised again
                self.failed = reason(error)
            else:
                self.lost = error
        except Exception as error:  # whatever it is, the search has to hear of it
            self.failed = reason(error)
