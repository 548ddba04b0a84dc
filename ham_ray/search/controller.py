"""Ray Tune's controller with the failures mended that would end a search, or make it wait for ever (Ray 2.60).

Tune raises for every error of Ray that is neither a task's nor an actor's: the memory monitor's, a full object store, a
result that cannot be read back. A process that dies while it is reset for its next trial makes that trial's failure
count twice, and the trial is then never started again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.tune.tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

_USED = re.compile(r"[\d.]+GB used / [\d.]+GB limit")


class LostProcessError(RayActorError):
    """The end or the silence of a trial's process, where Ray reports another cause than an actor's death."""

    def __init__(self, text: str) -> None:  # no exception: Tune pickles this one, and not all can be
        super().__init__(error_msg=text)


@contextmanager
def failures_stay_with_their_trial() -> Iterator[None]:
    """Let `Tuner.fit` use the mended controller while the block runs."""
    ray.tune.tune.TuneController = _Controller  # type: ignore[misc]
    try:
        yield
    finally:
        ray.tune.tune.TuneController = TuneController  # type: ignore[misc]


def reason(error: BaseException) -> str:
    """Describe an error in one line; of the memory monitor's message, keep the first sentence and the node's memory."""
    if isinstance(error, LostProcessError):
        return str(error)
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [""]
    if lines[0].startswith("Traceback") or (isinstance(cause, RayActorError) and cause.actor_init_failed):
        return lines[-1][:300]  # of a traceback: what was raised in Tune, or in the process's setup
    text = lines[0]
    if isinstance(cause, OutOfMemoryError) and (used := _USED.search(text)):
        text = f"{text.partition('. ')[0]} ({used[0]})"
    return f"{type(cause).__name__}: {text}"[:300]


class _Manager(RayActorManager):
    """An actor manager that reports every failure as one of a task or of an actor."""

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if not isinstance(exception, RayTaskError):
            exception = self._ended(tracked_actor_task._tracked_actor, exception)
        super()._actor_task_failed(tracked_actor_task, exception)

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        if not isinstance(exception, RayTaskError):
            exception = self._ended(tracked_actor, exception)
        super()._actor_start_failed(tracked_actor, exception)

    def _ended(self, tracked_actor: Any, exception: Exception) -> RayActorError:
        """Kill the actor, and return the failure as its death.

        An actor that only does not answer would otherwise train beside its successor.
        """
        actor, _ = self._live_actors_to_ray_actors_resources[tracked_actor]
        ray.kill(actor)
        return exception if isinstance(exception, RayActorError) else LostProcessError(reason(exception))


class _Controller(TuneController):
    """A TuneController that keeps the latest failure where a scheduler can see it."""

    failure: Exception

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._actor_manager = _Manager(self._actor_manager._resource_manager)

    def _actor_failed(self, tracked_actor: Any, exception: Exception) -> None:
        trial = self._actor_to_trial[tracked_actor]
        if trial in self._resetting_trials:  # it counts as running: what follows for the task restarts it
            self._resetting_trials.remove(trial)
            self._set_trial_status(trial, Trial.RUNNING)
            self._unstage_trial_with_resources(trial)
        super()._actor_failed(tracked_actor, exception)

    def _process_trial_failure(self, trial: Trial, exception: Any) -> None:
        self.failure = exception
        super()._process_trial_failure(trial, exception)
