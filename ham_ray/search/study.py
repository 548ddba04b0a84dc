"""The durable study: an Optuna study in a database is the whole truth of a search.

A search that goes on, or is extended, reads everything from it: finished trials, interrupted ones (they go on
under their own number), the scores of their epochs for the pruner. Where several processes share it, each trial is run
by one. The sampler is seeded anew for each trial from the space's seed and the trial's number, so that a resumed search
asks for the points that an uninterrupted one would have asked for.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import pandas as pd
from optuna.exceptions import OptunaError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from ham_ray import runs
from ham_ray.errors import UserError
from ham_ray.search import database
from ham_ray.search.leases import Leases
from ham_ray.search.ownership import Ownership
from ham_ray.search.space import Space, Value

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
STOPPED = "stopped"  # beside a trial: the scheduler's word, which it gives once
_TELLING = 4  # complete trials below which importances say nothing
_ASKING = "the next trial"  # the lease of the process that asks for one
_TOLD = 30.0  # seconds between lines while other processes run what is open
_LOOK = 3.0  # seconds between looks at it
_ALIKE = 3  # failures for one reason, and nothing else, before a search gives up


@dataclass(frozen=True)
class Ask:
    """A trial to run: its number in the study and its values."""

    number: int
    values: dict[str, Value]


class Study:
    """A search's Optuna study: it gives trials to run, and keeps their scores and how they ended."""

    def __init__(self, study: optuna.Study, space: Space, trials: int, leases: Leases) -> None:
        self.study, self.space, self.trials, self._leases = study, space, trials, leases
        with leases.holding(_ASKING):
            for number in self._cut_off():
                self.interrupted(number)
        self._before = frozenset(self.finished_numbers())

    def __getstate__(self) -> dict[str, Any]:
        """Give nothing to be pickled: Tune writes down what it runs for, and none of that is read back."""
        return {}

    def finished(self) -> int:
        """Count the trials that need not be run any more: complete, pruned and failed ones."""
        return len(self._in(*FINISHED))

    def finished_numbers(self) -> list[int]:
        """Return the numbers of the trials that are complete, pruned or failed."""
        return [trial.number for trial in self._in(*FINISHED)]

    def open(self) -> int:
        """Count the trials still to finish: of those asked for, and in any case those that were begun."""
        return max(self.trials - self.finished(), len(self._in(TrialState.RUNNING)))

    def ask(self) -> Ask | None:
        """Return the next trial, interrupted ones first; None where enough were asked for, or all fail alike.

        Values of an interrupted trial that had not been drawn before are drawn now.
        """
        number = self._begin()
        if number is None:
            return None
        self._seed(number)
        values = self.space.suggest(self._live(number))
        return Ask(number, {**self._frozen(number).params, **values})

    @database.patient
    def _begin(self) -> int | None:
        """Make the next trial a running one of this process. One process at a time does so: `trials` is exact.

        Where the study made one and its answer was lost, the next call has it as one that was cut off.
        """
        with self._leases.holding(_ASKING):
            if (number := next(self._cut_off(), None)) is not None:
                return number
            if self._all_begun() or self.failing_alike():
                return None
            self.study.sampler = RandomSampler()  # draws nothing here; `ask` has the trial's own
            number = self.study.ask().number
            self._leases.take(_lease(number))
            return number

    def _cut_off(self) -> Iterator[int]:
        """Yield running trials on which nobody works, this process's from now on; end those that are to be stopped."""
        for number in [trial.number for trial in self._in(TrialState.RUNNING)]:
            if not self._leases.take(_lease(number)):
                continue
            if not self.is_running(number):  # whose process ended it, and itself, just now
                self._leases.leave(_lease(number))
            elif STOPPED in self._frozen(number).user_attrs:  # interrupted between the scheduler's decision and the end
                self.prune(number)
            else:
                yield number

    def _all_begun(self) -> bool:
        return self.finished() + len(self._in(TrialState.RUNNING)) >= self.trials

    def has_work(self) -> bool:
        """Say whether there is a trial to ask for; wait, with lines, while other processes run all that are open.

        There is none either where one that was asked for still runs, or where all fail alike.
        """
        since, lines = time.monotonic(), 0
        while self.open() and not self.failing_alike():
            running = [_lease(trial.number) for trial in self._in(TrialState.RUNNING)]
            if any(map(self._leases.holds, running)):  # what ran it was interrupted
                return False
            if not self._all_begun():
                return True
            if (number := next(self._cut_off(), None)) is not None:
                self.interrupted(number)
                return True
            others = [name for name in running if not self._leases.holds(name)]  # the rest was to be stopped
            if others and time.monotonic() - since >= lines * _TOLD:
                lines += 1
                who = "; ".join(f"{name} in {self._leases.holder(name)}" for name in others)
                print(f"search: waiting for what runs elsewhere: {who}", flush=True)
            time.sleep(_LOOK)
        return False

    def is_running(self, number: int) -> bool:
        """Say whether a trial was asked for and has not ended."""
        return self._frozen(number).state == TrialState.RUNNING

    def interrupted(self, number: int) -> None:
        """Queue a running trial that lost its process: it is asked for again, before any new one."""
        self._leases.leave(_lease(number))

    def _seed(self, number: int) -> None:
        self.study.sampler = make_sampler(self.space, self.trials, number)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Record the score after an epoch (counted from 1); True where the scheduler stops the trial after it.

        The scheduler decides once about an epoch: False for one that a resumed trial repeats.
        """
        if epoch in self._frozen(number).intermediate_values:
            return False
        trial = self._live(number)
        trial.report(value, epoch)
        return trial.should_prune()

    def complete(self, number: int) -> float:
        """End a trial as complete; return its value, the best score of its epochs: a run keeps that epoch."""
        value = max(self._frozen(number).intermediate_values.values())
        self._end(number, TrialState.COMPLETE, value)
        return value

    def prune(self, number: int) -> None:
        """End a trial that the scheduler stopped: the sampler takes it for worse than every complete one."""
        self._end(number, TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """End a trial that gave no value, and keep the reason."""
        self.note(number, reason=reason)
        self._end(number, TrialState.FAIL)

    @database.patient
    def _end(self, number: int, state: TrialState, value: float | None = None) -> None:
        """Tell the study how a trial ended, unless it knows and only its answer was lost."""
        if self._frozen(number).state != state:
            self.study.tell(number, value, state)

    def note(self, number: int, **facts: Any) -> None:
        """Keep facts beside a trial."""
        for name, value in facts.items():
            self._live(number).set_user_attr(name, value)

    def failing_alike(self) -> str | None:
        """Return the reason for which every finished trial failed, where enough of this start did; None otherwise.

        Failures of an earlier start do not count: their cause may have been mended since.
        """
        if self._in(TrialState.COMPLETE, TrialState.PRUNED):
            return None
        failed = [trial for trial in self._in(TrialState.FAIL) if trial.number not in self._before]
        reasons = [str(trial.user_attrs.get("reason")) for trial in failed]
        return reasons[-1] if len(failed) >= _ALIKE and len({*map(_kind, reasons)}) == 1 else None

    def best(self, most: int, ranked: Sequence[int] = ()) -> list[FrozenTrial]:
        """Return up to `most` complete trials: those of `ranked` in its order, then the others, best value first."""
        by_value = sorted(self._in(TrialState.COMPLETE), key=lambda trial: -(trial.value or 0.0))
        places = {number: index for index, number in enumerate(ranked)}
        return sorted(by_value, key=lambda trial: places.get(trial.number, len(places)))[:most]

    def table(self) -> pd.DataFrame:
        """Make the TRIALS table: a row a trial, in the order of numbers."""
        return pd.DataFrame([_row(trial, self.space) for trial in self.study.get_trials(deepcopy=False)])

    def scores(self) -> dict[int, dict[int, float]]:
        """Return the scores by trial and epoch."""
        trials = self.study.get_trials(deepcopy=False)
        return {trial.number: dict(sorted(trial.intermediate_values.items())) for trial in trials}

    def importances(self) -> dict[str, float]:
        """Return each parameter's share of the values' variance (fANOVA), greatest first; empty for few trials."""
        if len(self._in(TrialState.COMPLETE)) < _TELLING:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            return optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # all values equal, or no parameter that every trial has
            return {}

    def record_code(self, code: str) -> None:
        """Keep the version of the code that goes on with the study, and say so where it has changed."""
        before = self.study.user_attrs.get("code", [])
        if before and before[-1] != code:
            print(f"code: {before[-1]} at the last start, {code} now", flush=True)
        if before[-1:] != [code]:
            self.study.set_user_attr("code", [*before, code])

    def _in(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _live(self, number: int) -> optuna.Trial:
        return optuna.Trial(self.study, self._frozen(number)._trial_id)


def open_study(
    name: str,
    url: str,
    space: Space,
    trials: int,
    facts: dict[str, Any],
    other_ok: bool = False,
    details: dict[str, dict[str, Any]] | None = None,
    ownership: Ownership | None = None,
) -> Study:
    """Open the study of that name in a database, or make it with the space's prior points queued.

    `facts` say what a trial's value depends on beside its parameters; a study that was made with others is refused, or
    with `other_ok` continued, and what it was continued with is added to its facts. `details` hold, for facts that are
    digests, what they are digests of, so that a difference can be named by its fields. With an `ownership` nothing is
    written once another process has taken the study over.

    Raises:
        StudyError: the database cannot be opened, or did not answer for as long as it is waited for; later also of
            every method of the study that cannot use it.
        UserError: the study has other facts, or a parameter other values than a study
            can hold side by side.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _opened(name, url, make_pruner(space), ownership)
    _check_facts(study, space, facts, json.loads(json.dumps(details or {})), other_ok)
    _queue_points(study, space)
    return Study(study, space, trials, ownership or Leases())


@database.patient
def _opened(name: str, url: str, pruner: BasePruner, ownership: Ownership | None) -> optuna.Study:
    """Optuna's study of that name, made where there is none."""
    try:
        backend = optuna.storages.RDBStorage(url, engine_kwargs=database.settings(url))
        database.watch(backend.engine, url)
        if ownership:
            ownership.guard(backend.engine)
        patient: Any = _Patient(backend)
        storage = optuna.storages._CachedStorage(patient)  # as Optuna itself wraps one
        return optuna.create_study(
            study_name=name, storage=storage, direction="maximize", pruner=pruner, load_if_exists=True
        )
    except (SQLAlchemyError, OptunaError, ImportError, ValueError, RuntimeError) as error:
        raise database.explained(error, url) from None


class _Patient:
    """Optuna's storage, each of whose calls waits for a database that is away.

    All of them can be repeated where only the answer was lost (they read, or write a row anew), but for those that make
    trials and change their states. `Study` and `_queue_points` repeat these together with a look at what they did.
    """

    _not_alone = ("create_new_trial", "_create_new_trial", "set_trial_state_values")

    def __init__(self, storage: optuna.storages.RDBStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._storage, name)
        return database.patient(value) if callable(value) and name not in self._not_alone else value


@database.patient
def _queue_points(study: optuna.Study, space: Space) -> None:
    for index, point in enumerate(space.points):
        if index >= study.user_attrs.get("points", 0):
            study.enqueue_trial(point, skip_if_exists=True)  # a kill between the two lines queues none twice
            study.set_user_attr("points", index + 1)


def startup_trials(trials: int, points: int) -> int:
    """Count the trials drawn at random before TPE proposes any: a quarter of `trials`, but 2 to 10.

    With more prior `points` than that it is their number, up to half of the trials.
    """
    return max(min(10, max(2, trials // 4)), min(points, trials // 2))


def make_sampler(space: Space, trials: int, number: int) -> BaseSampler:
    """Make the space's sampler for trial `number` of a search of `trials`.

    Running trials count as bad ones (constant liar), so that parallel trials do not crowd together.
    """
    seed = space.sampler.seed * 100_003 + number
    if space.sampler.name == "random":
        return RandomSampler(seed=seed)
    return TPESampler(
        seed=seed,
        n_startup_trials=startup_trials(trials, len(space.points)),
        multivariate=space.sampler.multivariate,
        constant_liar=True,
    )


def make_pruner(space: Space) -> BasePruner:
    """Make the space's scheduler as Optuna's pruner: it decides from the study alone, also after an interruption."""
    scheduler = space.scheduler
    if scheduler.name == "asha":
        return SuccessiveHalvingPruner(min_resource=scheduler.grace, reduction_factor=scheduler.reduction)
    if scheduler.name == "median":
        return MedianPruner(n_startup_trials=4, n_warmup_steps=scheduler.grace)
    return NopPruner()


def _lease(number: int) -> str:
    return f"trial {number}"


def _kind(reason: str) -> str:
    """Replace a reason's numbers by `#`: positions, learning rates and sizes differ from trial to trial."""
    return re.sub(r"\b(nan|inf)\b|[-+]?\d[\w.+-]*", "#", reason)


def _check_facts(
    study: optuna.Study, space: Space, facts: dict[str, Any], details: dict[str, dict[str, Any]], other_ok: bool
) -> None:
    before = study.user_attrs.get("facts", facts)
    if changed := [name for name in facts if facts[name] != before.get(name)]:
        of_before = study.user_attrs.get("details", {})  # absent in studies of older code
        fields = {name: _difference(of_before.get(name), details.get(name)) for name in changed}
        message = "; ".join(
            f"{name}: {fields[name] or f'{before.get(name)} there, {facts[name]} now'}" for name in changed
        )
        if not other_ok:
            raise UserError(
                f"study {study.study_name!r} was made with something else ({message}); take another --name, or "
                "--mixed, which goes on although values of old and new trials are not comparable"
            )
        _check_parameters(study, space)
        print(f"study: going on with something else, values of old and new trials are not comparable: {message}")
        study.set_user_attr("mixed", [*study.user_attrs.get("mixed", []), message])
    study.set_user_attr("facts", facts)
    study.set_user_attr("details", details)


def _difference(before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    """Name the fields that differ, with both values; empty where one side has none recorded."""
    if before is None or now is None:
        return ""
    return ", ".join(f"{name} {old!r} there, {new!r} now" for name, old, new in runs.differences(before, now))


def _check_parameters(study: optuna.Study, space: Space) -> None:
    """Refuse what Optuna cannot hold in one study, before it fails in the middle of a trial."""
    for trial in study.get_trials(deepcopy=False):
        for name in trial.distributions.keys() & space.parameters.keys():
            before, now = trial.distributions[name], space.parameters[name].distribution()
            try:
                optuna.distributions.check_distribution_compatibility(before, now)
            except ValueError:
                raise UserError(
                    f"--mixed: {name} was {before} in trial {trial.number} and is {now} now; type, log and choices of "
                    f"a parameter cannot change within study {study.study_name!r}: take another --name"
                ) from None


def _row(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    scores = trial.intermediate_values
    value = trial.value if trial.value is not None else max(scores.values(), default=math.nan)
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        space.objective: value,
        "epochs": max(scores, default=0),
        **{name: trial.params.get(name) for name in space.parameters},
        "seconds": trial.user_attrs.get("seconds", math.nan),
        "run": trial.user_attrs.get("run", ""),
        "reason": trial.user_attrs.get("reason", ""),
    }
