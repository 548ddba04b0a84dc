"""What watches a training: called after each epoch, by baselines and by trials of a search alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
import ray.train

from ham_ray import runs, storage
from ham_ray.training.epoch_barrier import wait

Row = dict[str, Any]  # of HISTORY


class Callback:
    """A watcher of a training, which does nothing until a method is overridden. Each worker has its own."""

    def on_start(self, history: list[Row]) -> None:
        """Act before the first epoch of this start; `history` has the epochs before an interruption."""

    def on_epoch(self, row: Row) -> None:
        """Act after an epoch, once its checkpoint is written."""

    def on_end(self, history: list[Row]) -> None:
        """Act after the last epoch; not called where the training was stopped or failed."""

    def may_go_on(self, history: list[Row]) -> bool:
        """Return whether to train the next epoch, at the start and after each epoch; may wait for the decision."""
        return True


class Console(Callback):
    """A callback that prints a line an epoch."""

    def __init__(self, epochs: int, say: Callable[..., None]) -> None:
        self.epochs, self.say = epochs, say

    def on_epoch(self, row: Row) -> None:
        """Print losses, scores and pace, with the epochs left and the seconds of this one for the time left."""
        self.say(
            f"epoch {row['epoch']}/{self.epochs}, loss {row['train_loss']:.3f}, {_validated(row)}, "
            f"{row['images_per_second']:.0f} images/s",
            self.epochs - row["epoch"],
            row["seconds"],
        )


class RayTrain(Callback):
    """A callback that reports each epoch to Ray Train."""

    def on_epoch(self, row: Row) -> None:
        """Report the numbers of the epoch's row."""
        ray.train.report({key: value for key, value in row.items() if key != "phase"})


class Barrier(Callback):
    """A callback that waits after each epoch for an `EpochBarrier`; the first worker reports the epochs to it."""

    def __init__(self, barrier: Any, epochs: int, rank: int) -> None:
        self.barrier, self.epochs, self.rank = barrier, epochs, rank

    def may_go_on(self, history: list[Row]) -> bool:
        """Send all epochs, those before an interruption too, and wait; after the last there is no need to."""
        if not history:
            return True
        if self.rank == 0:
            ray.get(self.barrier.report.remote(history))
        epoch = history[-1]["epoch"]
        return epoch == self.epochs or wait(self.barrier, epoch)


class Elastic(Callback):
    """A callback that asks at each epoch's end whether the workers are to be started anew in another number."""

    def __init__(self, end: Any, epochs: int) -> None:
        self.end, self.epochs = end, epochs

    def may_go_on(self, history: list[Row]) -> bool:
        """Ask the actor `EpochsEnd`; after the last epoch there is no need to."""
        return len(history) == self.epochs or ray.get(self.end.may_go_on.remote(len(history)))


class HistoryFile(Callback):
    """A callback that writes HISTORY as JSON at the end."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def on_end(self, history: list[Row]) -> None:
        """Write the file at `uri`."""
        storage.write_bytes(self.uri, runs.to_json(history))


def _validated(row: Row) -> str:
    """Describe the validation scores of a row of HISTORY."""
    if "validation_macro_f1" not in row:
        return "no validation fold"
    best = " (best)" if row["best"] else ""
    return (
        f"validation macro-F1 {row['validation_macro_f1']:.3f}, balanced accuracy "
        f"{row['validation_balanced_accuracy']:.3f}{best}"
    )
