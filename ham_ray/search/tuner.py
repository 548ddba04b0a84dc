"""Ray Tune as the study's hands: it runs what the study asks for and tells it what came of it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ham_ray import storage
from ham_ray.runs import CHECKPOINTS
from ham_ray.search.study import STOPPED, Study
from ham_ray.search.trial import Shared, trial_folder


@dataclass(frozen=True)
class Means:
    """What a search may use: trials at once, CPUs and GPUs of each, restarts of a trial whose process died."""

    concurrent: int
    cpus: float
    gpus: float
    max_failures: int


def run(study: Study, shared: Shared, means: Means, trainable: type[tune.Trainable]) -> None:
    """Run trials until the study has enough finished ones, or all fail alike.

    `trainable` is WarmTrial or JoinedTrial with its parameters.
    """
    # A new name each time: what Tune leaves on disk is never read back. The study is.
    name, place = f"ray-{time.time_ns()}", shared.place
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", AIR_VERBOSITY="0")  # the lines below tell more
    told = _Told(study, shared)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": means.cpus, **({"GPU": means.gpus} if means.gpus else {})}),
        tune_config=tune.TuneConfig(
            search_alg=_Asker(study, told),
            scheduler=_Stopper(study, told),
            num_samples=study.open(),
            max_concurrent_trials=means.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=place,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=means.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    tuner.fit()
    storage.remove(storage.join(place, name))


class _Told:
    """What Tune's trials are in the study, and a line for the user at each turn."""

    def __init__(self, study: Study, shared: Shared) -> None:
        self.study, self.shared = study, shared
        self.numbers: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        self.epochs: dict[int, int] = {}
        self.started, self.before = time.monotonic(), study.finished()

    def scores(self, number: int, result: dict[str, Any]) -> bool:
        """A trial has these scores; True where it was not worth going on after one of them."""
        stops = [self.study.report(number, epoch, score) for epoch, score in result["scores"]]
        stop = any(stops[:-1] if result["finished"] else stops)  # after the last epoch there is nothing to stop
        self.study.note(number, seconds=result["seconds"], **({STOPPED: True} if stop else {}))
        epoch, score = result["scores"][-1]
        if epoch > self.epochs.get(number, 0):
            self.epochs[number] = epoch
            best = self.study.best(1)
            so_far = f", best trial so far {best[0].value:.3f}" if best else ""
            print(f"trial {number} epoch {epoch}/{self.shared.base.epochs}: {score:.3f}{so_far}", flush=True)
        return stop

    def end(self, number: int, how: str) -> None:
        """A trial is finished."""
        storage.remove(storage.join(self.shared.folder(number), CHECKPOINTS))
        done = self.study.finished()
        pace = (time.monotonic() - self.started) / max(1, done - self.before)
        left = self.study.open() * pace / 60
        print(f"trial {number} {how}; {done} of {self.study.trials} finished, about {left:.0f} min left", flush=True)


class _Asker(Searcher):
    """Takes trials from the study, and tells it how they ended."""

    def __init__(self, study: Study, told: _Told) -> None:
        super().__init__()
        self.study, self.told = study, told

    def suggest(self, trial_id: str) -> Any:
        """The next trial's number and values."""
        ask = self.study.ask()
        if ask is None:
            return Searcher.FINISHED
        self.told.numbers[trial_id] = ask.number
        self.study.note(ask.number, run=self.told.shared.folder(ask.number))
        values = ", ".join(f"{name} {_short(value)}" for name, value in ask.values.items())
        print(f"trial {ask.number}: {values}", flush=True)
        return {"trial": ask.number, "values": ask.values}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study the trial's state: complete, pruned or failed."""
        number = self.told.numbers[trial_id]
        failed = self.told.reasons.get(trial_id, "no reason known") if error else (result or {}).get("failed")
        if failed:
            self.study.fail(number, failed)
            self.told.end(number, f"failed: {failed}")
        elif result and result["scores"]:
            stop = self.told.scores(number, result)  # of the last epoch nobody has heard yet
            self._tell_scored(number, result, complete=result["finished"] and not stop)

    def _tell_scored(self, number: int, result: dict[str, Any], complete: bool) -> None:
        if complete:
            self.told.end(number, f"complete: {self.study.complete(number):.3f}")
        else:
            self.study.prune(number)
            epoch, score = result["scores"][-1]
            self.told.end(number, f"stopped after epoch {epoch}: {score:.3f}")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is saved already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Stopper(FIFOScheduler):
    """Stops trials where the study's pruner says so."""

    def __init__(self, study: Study, told: _Told) -> None:
        super().__init__()
        self.study, self.told = study, told

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Tell the study every epoch it has not heard of, and ask whether the trial is worth going on."""
        if result["failed"]:
            return self.CONTINUE
        return self.STOP if self.told.scores(self.told.numbers[trial.trial_id], result) else self.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Keep the reason for the study."""
        self.told.reasons[trial.trial_id] = _reason(trial)


def _reason(trial: Trial) -> str:
    path = trial.pickled_error_file  # just written; Tune's getters look where it will have been copied to
    if not path:
        return "Tune gives no reason"
    error = cloudpickle.loads(Path(path).read_bytes())
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"[:300]


def forget_checkpoints(study: Study, place: str) -> None:
    """Of the finished trials of a search: a kill may have come between the word to the study and this."""
    for number in study.finished_numbers():
        storage.remove(storage.join(trial_folder(place, number), CHECKPOINTS))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
