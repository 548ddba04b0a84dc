"""What ends the training of a trial of several workers: told as its failure, or raised so that it is started again."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.train import WorkerGroupError

from ham_ray.recipe import Recipe, make_recipe
from ham_ray.search import distributed_trial
from ham_ray.search.distributed_trial import DistributedTrial

pytestmark = pytest.mark.unit


class Shared:
    """What the trial asks of the search."""

    base = make_recipe(family="simple_cnn", epochs=2, learning_rate=1e-3)
    tables: dict[str, Any] = {}  # noqa: RUF012
    weights = None

    def recipe(self, values: dict[str, Any]) -> Recipe:
        return self.base

    def folder(self, number: int) -> str:
        return "nowhere"


class Remote:
    """A method of an actor that answers at once."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    def remote(self, *arguments: Any) -> Any:
        return self.answer

    def options(self, **where: Any) -> Remote:
        return self


class FakeBarrier:
    release, stop, reported = Remote(), Remote(), Remote({})


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> DistributedTrial:
    """A trial whose workers are not started."""
    monkeypatch.setattr(distributed_trial, "EpochBarrier", Remote(FakeBarrier()))
    monkeypatch.setattr(distributed_trial, "this_node", lambda: None)
    monkeypatch.setattr(distributed_trial.ray, "get", lambda answer: answer)
    monkeypatch.setattr(distributed_trial.ray, "kill", lambda barrier: None)
    monkeypatch.setattr(distributed_trial.input_pipeline, "split", lambda *arguments, **more: None)
    made = object.__new__(DistributedTrial)
    made.shared, made.images, made.resources = Shared(), None, type("Two", (), {"workers": 2})()  # type: ignore
    made.shard_memory, made.restarts = 1.0, 2
    made._begin({"trial": 0, "values": {}})
    return made


def ends_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(distributed_trial.workers, "train", train)


@pytest.mark.parametrize("error", [OutOfMemoryError("the node is running low on memory"), ActorDiedError()])
def test_a_process_that_nobody_restarts_restarts_the_trial(trial: DistributedTrial, error: Exception, monkeypatch):
    ends_with(error, monkeypatch)
    with pytest.raises(type(error)):
        trial.step()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WorkerGroupError("rank 0 died\nout of memory", {}), "WorkerGroupError (out of memory)"),
        (RayTaskError("read", "trace", OSError("no such file")), "OSError: no such file"),
        (ValueError("a wrong shape\nand more"), "ValueError: a wrong shape"),
    ],
)
def test_what_would_happen_again_is_the_trials_reason(
    trial: DistributedTrial, error: Exception, reason: str, monkeypatch
):
    ends_with(error, monkeypatch)
    told = trial.step()
    assert told["failed"] == reason and told["done"] and not told["finished"]


def test_a_barrier_that_is_gone_does_not_keep_the_next_trial(trial: DistributedTrial, monkeypatch):
    trial.thread = threading.Thread(target=lambda: None)
    trial.thread.start()

    def gone(answer: Any) -> None:
        raise ActorDiedError

    monkeypatch.setattr(distributed_trial.ray, "get", gone)
    assert trial.reset_config({"trial": 1, "values": {}}) and trial.thread is None
