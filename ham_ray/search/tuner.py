"""Ray Tune as a study's executor: it runs the trials that the study asks for, and reports to it how they ended.

Whatever ends a trial's process is that trial's failure and nobody else's: it is started again at most `max_failures`
times, then it is a failed trial with its reason, and the search goes on. An error of Tune itself counts as a failure of
the trials that were running, and Tune is started again for the rest.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ham_ray import runs, storage
from ham_ray.errors import UserError
from ham_ray.runs import CHECKPOINTS
from ham_ray.search.controller import failures_stay_with_their_trial, reason
from ham_ray.search.study import STOPPED, Study
from ham_ray.search.trial import Shared, trial_folder
from ham_ray.waiting import watched


@dataclass(frozen=True)
class TrialResources:
    """What a search may use: trials at once, CPUs and GPUs of each, restarts of a trial whose process died."""

    concurrent: int
    cpus: float
    gpus: float
    max_failures: int


def run(
    study: Study,
    shared: Shared,
    resources: TrialResources,
    trainable: type[tune.Trainable],
    time_left: Callable[[Study], str] = lambda study: "",
) -> None:
    """Run trials until the study has enough finished ones, or all fail alike.

    `trainable` is InProcessTrial or DistributedTrial with its parameters; `time_left` says how long the
    command still takes.

    Raises:
        UserError: the study's database fails or has another owner, or Tune fails before any trial runs.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the lines below tell more
    os.environ.update(
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        RAY_AIR_NEW_OUTPUT="0",  # its reporter prints a box and a path even where it is to be silent
        TUNE_DISABLE_SIGINT_HANDLER="1",  # it would swallow the first Ctrl-C
    )
    reporter = TrialReporter(study, shared, resources.max_failures, time_left)
    awaited = f"the next epoch of a trial, {resources.concurrent} at once × {resources.cpus:g} CPU"
    with watched("search", awaited) as reporter.heard:
        while (error := _run_tune(reporter, resources, trainable)) is not None:
            reporter.tune_failed(error)


def _run_tune(reporter: TrialReporter, resources: TrialResources, trainable: type[tune.Trainable]) -> Exception | None:
    """Run Tune until it has no more trials; return the error that ended it before, if any."""
    # A new name each time: what Tune leaves on disk is never read back. The study is.
    name, path = f"ray-{time.time_ns()}", reporter.shared.place
    reporter.begin()
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}),
        tune_config=tune.TuneConfig(
            search_alg=_Asker(reporter),
            scheduler=_Stopper(reporter),
            num_samples=reporter.study.open(),
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=path,
            verbose=0,
            stop=_End(reporter),
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    try:
        with failures_stay_with_their_trial():
            tuner.fit()
    except Exception as error:
        reporter.raise_own_error()
        return error.with_traceback(None)  # whose frames would keep Tune's processes alive, and their CPUs
    reporter.raise_own_error()
    storage.remove(storage.join(path, name))
    return None


class TrialReporter:
    """The link from Tune's trials to those of the study; it prints a line for the user at each event."""

    def __init__(
        self, study: Study, shared: Shared, max_failures: int = 0, time_left: Callable[[Study], str] = lambda study: ""
    ) -> None:
        self.study, self.shared, self.max_failures, self.time_left = study, shared, max_failures, time_left
        self.numbers: dict[str, int] = {}
        self.reasons: dict[int, str] = {}
        self.epochs: dict[int, int] = {}
        self.failures: Counter[int] = Counter()  # of processes, by trial
        self.before: Counter[int] = Counter()  # of those, in earlier runs of Tune
        self.error: Exception | None = None
        self.heard: Callable[[], None] = lambda: None  # called at each sign of life of a trial

    def begin(self) -> None:
        """Prepare for another run of Tune: trials are assigned anew, failures so far count as earlier ones."""
        self.numbers, self.before = {}, self.failures.copy()

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Keep an error that the block raises: Tune takes one of ours for the trial's, or wraps its traceback."""
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def raise_own_error(self) -> None:
        """Raise the first error of ours that came up while Tune ran, if there was one."""
        if self.error is not None:
            raise self.error from None

    def report(self, number: int, result: dict[str, Any]) -> bool:
        """Record a trial's scores; True where the scheduler stops it after one of them."""
        self.heard()
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

    def failed(self, number: int, error: Exception) -> None:
        """Record that a trial's process died or raised."""
        self.heard()
        if self.error is not None:  # of ours, which Tune takes for the trial's
            return
        self.failures[number] += 1
        self.reasons[number] = reason(error)
        if self.failures[number] <= self.max_failures:
            count = f"restart {self.failures[number]} of at most {self.max_failures}"
            print(f"trial {number}: {self.reasons[number]}; {count}", flush=True)

    def tune_failed(self, error: Exception) -> None:
        """Record an early end of Tune as a failure of each running trial, for nobody knows which of them it was.

        Raises:
            UserError: no trial was running, or Ray is gone: Tune would end so again.
        """
        running = [number for number in self.numbers.values() if self.study.is_running(number)]
        if not running or not ray.is_initialized():
            raise UserError(f"Ray Tune ended: {reason(error)}; the same command goes on") from error
        for number in running:
            self.failed(number, error)
            if self.failures[number] > self.max_failures:
                self.study.fail(number, self.reasons[number])
                self.end(number, f"failed: {self.reasons[number]}")
            else:
                self.study.interrupted(number)

    def end(self, number: int, how: str) -> None:
        """Remove a finished trial's checkpoints, and print how it ended."""
        storage.remove(storage.join(self.shared.folder(number), CHECKPOINTS))
        left = self.time_left(self.study)
        done = f"{self.study.finished()} of {self.study.trials} finished"
        print(f"trial {number} {how}; {done}{f'; {left}' if left else ''}", flush=True)


class _End(tune.Stopper):
    """A stopper that ends Tune's run once an error of ours came up in it."""

    def __init__(self, reporter: TrialReporter) -> None:
        self.reporter = reporter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Say whether there was an error of ours."""
        return self.reporter.error is not None


class _Asker(Searcher):
    """A searcher that takes trials from the study, and reports to it how they ended."""

    def __init__(self, reporter: TrialReporter) -> None:
        super().__init__()
        self.study, self.reporter = reporter.study, reporter

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's number and values."""
        with self.reporter.keeping_errors():
            ask = self.study.ask()
            if ask is None:
                return Searcher.FINISHED
            self.reporter.numbers[trial_id] = ask.number
            self.study.note(ask.number, run=self.reporter.shared.folder(ask.number))
        values = ", ".join(f"{name} {_short(value)}" for name, value in ask.values.items())
        print(f"trial {ask.number}: {values}", flush=True)
        return {"trial": ask.number, "values": ask.values}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record in the study how the trial ended: complete, pruned or failed."""
        number = self.reporter.numbers[trial_id]
        failed = self.reporter.reasons.get(number, "no reason known") if error else (result or {}).get("failed")
        with self.reporter.keeping_errors():
            if failed:
                self.study.fail(number, failed)
                self.reporter.end(number, f"failed: {failed}")
            elif result and result["scores"]:
                stop = self.reporter.report(number, result)  # of the last epoch nobody has heard yet
                self._tell_scored(number, result, complete=result["finished"] and not stop)

    def _tell_scored(self, number: int, result: dict[str, Any], complete: bool) -> None:
        if complete:
            self.reporter.end(number, f"complete: {self.study.complete(number):.3f}")
        else:
            self.study.prune(number)
            epoch, score = result["scores"][-1]
            self.reporter.end(number, f"stopped after epoch {epoch}: {score:.3f}")

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study is in its database already."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the study is read from its database."""


class _Stopper(FIFOScheduler):
    """A scheduler that stops trials where the study's pruner says so."""

    def __init__(self, reporter: TrialReporter) -> None:
        super().__init__()
        self.study, self.reporter = reporter.study, reporter

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Allow the trial the restarts that earlier runs of Tune have left it."""
        super().on_trial_add(tune_controller, trial)
        trial.max_failures = self.reporter.max_failures - self.reporter.before[self.reporter.numbers[trial.trial_id]]

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Report the trial's new epochs to the study, and ask whether the trial is worth going on."""
        if result["failed"]:
            return self.CONTINUE
        with self.reporter.keeping_errors():
            stop = self.reporter.report(self.reporter.numbers[trial.trial_id], result)
        return self.STOP if stop else self.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Record the failure with its reason."""
        super().on_trial_error(tune_controller, trial)
        self.reporter.failed(self.reporter.numbers[trial.trial_id], tune_controller.failure)


def forget_checkpoints(study: Study, path: str) -> None:
    """Remove the checkpoints of finished trials, where an interruption came before they were removed."""
    for number in study.finished_numbers():
        storage.remove(storage.join(trial_folder(path, number), CHECKPOINTS))


def remove_leftovers(path: str) -> None:
    """Remove what interrupted runs of Tune and Train left in the folder at `path` of a search and in its trials'."""
    for folder in (path, *storage.folders(path)):
        if folder == path or storage.basename(folder).startswith("trial-"):
            runs.remove_leftovers(folder)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
