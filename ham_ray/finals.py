"""After a search: its best trials trained again with several seeds, one of them named, and only then the test fold.

Validation chooses: the winner by its mean score over seeds, the temperature, tau. A difference between two trials of
one validation fold says little; a mean over seeds says more.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial

from ham_ray import runs, storage
from ham_ray.comparison import Setting, publish, train
from ham_ray.diagnoses import CODES, PROBABILITIES
from ham_ray.errors import UserError
from ham_ray.evaluation import calibration, metrics
from ham_ray.evaluation.predictions import arrays, of_split
from ham_ray.evaluation.summary import Run, Summary
from ham_ray.prediction import predict_rows
from ham_ray.recipe import Recipe
from ham_ray.training import feed, workers

WINNER = "winner.json"
CALIBRATED = "the last one, calibrated"


@dataclass(frozen=True)
class Plan:
    """How the best are trained again: seeds of each, trials averaged (1 = the winner alone), views of each image."""

    seeds: int
    ensemble: int = 1
    views: int = 1


def finals(best: list[FrozenTrial], base: Recipe, plan: Plan, setting: Setting, baselines: dict[str, Run]) -> Summary:
    """Train the best trials with seeds 0, 1, …, name the winner, and show its test figures beside the baselines'.

    The table has the winner with one seed (the first that ended, not the best) and then, each on top of the one
    before: the average of its seeds, of several trials, of several views, and that calibrated.

    Raises:
        UserError: no trial is complete, or none of the best could be trained again.
    """
    if not best:
        raise UserError("no trial is complete: there is nothing to train again")
    tried = _trained(best, base, plan.seeds, setting)
    means = {n: float(np.mean([_validation_score(run, base) for run in found.values()])) for n, found in tried.items()}
    ranked = sorted(means, key=lambda number: -means[number])
    for number in ranked:
        print(f"trial {number}: validation {base.select_by} {means[number]:.3f}, mean of {len(tried[number])} seed(s)")
    shown = _stages({number: tried[number] for number in ranked[: plan.ensemble]}, plan.views, base, setting)
    for name, run in shown.items():
        print(f"{name}: validation {base.select_by} {_validation_score(run, base):.3f}", flush=True)
    last = shown[list(shown)[-1]]
    fitted = _calibration(last, base, setting)
    winner = {"trial": ranked[0], "scores": means, "calibration": vars(fitted)}
    storage.write_bytes(storage.join(setting.out, WINNER), runs.to_json(winner))
    shown[CALIBRATED] = Run(fitted.applied(_table(last)), None, {**last.info, "minutes": None})
    beside = {f"baseline {family}": run for family, run in baselines.items()}
    pairs = tuple((CALIBRATED, name) for name in beside)
    return publish({**shown, **beside}, setting, base, "The search's winner", pairs)


def _trained(best: list[FrozenTrial], base: Recipe, seeds: int, setting: Setting) -> dict[int, dict[str, Run]]:
    """By trial and name, the runs that ended with a model; trials without any are left out."""
    recipes = {
        trial.number: {
            f"trial-{trial.number}-seed-{seed}": base.changed(**trial.params, seed=seed) for seed in range(seeds)
        }
        for trial in best
    }
    found = train({name: recipe for named in recipes.values() for name, recipe in named.items()}, setting)
    ended = {
        n: {name: found[name] for name in named if found[name].predictions is not None} for n, named in recipes.items()
    }
    if not any(ended.values()):
        raise UserError("none of the best trials could be trained again; the reasons stand above")
    return {number: named for number, named in ended.items() if named}


def _stages(members: dict[int, dict[str, Run]], views: int, base: Recipe, setting: Setting) -> dict[str, Run]:
    """What is made of the winner, the first of the members, step by step."""
    winner, own = next(iter(members.items()))
    shown = {f"trial {winner}, one seed": next(iter(own.values()))}
    last = average([*own.values()])
    if len(own) > 1:
        shown[f"trial {winner}, {len(own)} seeds averaged"] = last
    if len(members) > 1:
        last = average([average([*found.values()]) for found in members.values()])
        shown[f"{len(members)} trials averaged"] = last
    if views > 1:
        shown[f"that in {views} views"] = _viewed(last, [*itertools.chain(*members.values())], views, base, setting)
    return shown


def _viewed(run: Run, names: list[str], views: int, base: Recipe, setting: Setting) -> Run:
    """The run's images predicted anew by these models, each image in several of its eight symmetries."""
    rows = setting.images.fold(base.validation_fold, base.test_fold)
    models = [storage.join(setting.out, name, workers.MODEL) for name in names]
    predicted = pd.DataFrame(predict_rows(models, setting.images, rows, views), rows["image_id"], PROBABILITIES)
    probabilities = predicted.loc[_table(run)["image_id"]].to_numpy()
    return Run(_with(_table(run), probabilities), None, {**run.info, "minutes": None})


def _table(run: Run) -> pd.DataFrame:
    """The predictions of a run that ended with a model."""
    assert run.predictions is not None
    return run.predictions


def _with(table: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    return table.assign(**dict(zip(PROBABILITIES, probabilities.T.astype(np.float32), strict=True)))


def average(found: list[Run]) -> Run:
    """The run whose probabilities are the mean of these runs'; all ended with a model."""
    tables = [_table(run) for run in found]
    probabilities = np.mean([arrays(table)[1] for table in tables], axis=0)
    if any(not table["image_id"].equals(tables[0]["image_id"]) for table in tables):
        raise AssertionError("predictions of different images cannot be averaged")
    minutes = sum(run.info.get("minutes", 0.0) for run in found)
    return Run(_with(tables[0], probabilities), None, {**found[0].info, "minutes": minutes})


def _validation_score(run: Run, base: Recipe) -> float:
    return _score(base)(*arrays(of_split(_table(run), "validation")))


def _score(base: Recipe) -> calibration.Score:
    return getattr(metrics, base.select_by)  # Recipe allows names of metrics only


def _calibration(run: Run, base: Recipe, setting: Setting) -> calibration.Calibration:
    """Fitted on the validation images."""
    labels = feed.split_rows(setting.images, base)["training"]["label"]
    prior = np.bincount(labels, minlength=len(CODES)) / len(labels)
    fitted = calibration.fit(_table(run), prior, _score(base))
    print(f"calibration on validation: temperature {fitted.temperature:.2f}, tau {fitted.tau:.2f}", flush=True)
    return fitted
