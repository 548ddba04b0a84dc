"""How long a search still takes: its trials by the mean of those that ended, its finals by the best trials."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ham_ray.progress import duration
from ham_ray.search.study import Study

_TELLING = 2  # trials that have to end first: one alone may be the dearest prior point


@dataclass(frozen=True)
class Ahead:
    """The finals that follow a search's trials.

    scale: the pixels of an image in the finals, as a multiple of a trial's.
    """

    finalists: int
    trainings: int
    epochs: int  # of each, at most
    scale: float = 1.0


def time_left(study: Study, at_once: int, ahead: Ahead) -> str:
    """Estimate the time left: `trials: about 12 min; finals then: 3 trainings, about 9 min …`; empty where none is."""
    trials, still, words = study.table(), study.open(), []
    timed = trials if trials.empty else trials.query("seconds > 0 and state != 'running'")
    if still and len(timed) < _TELLING:
        return f"the time left is known after {_TELLING} trials"
    if still:
        words.append(f"trials: about {duration(still * timed['seconds'].mean() / min(at_once, still))}")
    if ahead.trainings and len(timed):
        seconds = ahead.trainings * ahead.epochs * ahead.scale * _epoch(timed, study, ahead.finalists)
        trainings = f"{ahead.trainings} training{'s' if ahead.trainings > 1 else ''}, about {duration(seconds)}"
        words.append(f"finals{' then' if still else ''}: {trainings} without start and evaluation")
    return "; ".join(words)


def _epoch(timed: pd.DataFrame, study: Study, finalists: int) -> float:
    """Return the mean seconds of an epoch of the trials that would be finalists now; of all, where none is complete."""
    best = [trial.number for trial in study.best(finalists)]
    chosen = timed[timed["trial"].isin(best)] if best else timed
    return float((chosen["seconds"] / chosen["epochs"].clip(lower=1)).mean())
