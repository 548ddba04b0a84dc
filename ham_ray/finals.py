"""After a search: its best trials trained again with several seeds, one of them named, and only then the test fold.

Validation chooses: the winner by its mean score over seeds, the temperature, tau. A difference between two trials of
one validation fold says little; a mean over seeds says more.
"""

from __future__ import annotations

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

    The table has the winner with one seed (the first, not the best) and then, each on top of the one before: the
    average of its seeds, of several trials, of several views, and that calibrated.

    Raises:
        UserError: no trial is complete, or none of the best could be trained again.
    """
    if not best:
        raise UserError("no trial is complete: there is nothing to train again")
    recipes = {
        _name(trial.number, seed): base.changed(**{**trial.params, "seed": seed})
        for trial in best
        for seed in range(plan.seeds)
    }
    trained = train(recipes, setting)
    means = _mean_scores([trial.number for trial in best], plan.seeds, trained, base)
    ranked = sorted(means, key=lambda number: -means[number])
    for number in ranked:
        print(f"trial {number}: validation {base.select_by} {means[number]:.3f}, mean of {plan.seeds} seed(s)")
    shown = _stages(ranked, trained, plan, base, setting)
    for name, run in shown.items():
        assert run.predictions is not None
        print(f"{name}: validation {base.select_by} {_validation_score(run.predictions, base):.3f}", flush=True)
    fitted = _calibration(shown[list(shown)[-1]], base, setting)
    winner = {"trial": ranked[0], "scores": means, "calibration": vars(fitted)}
    storage.write_bytes(storage.join(setting.out, WINNER), runs.to_json(winner))
    shown[CALIBRATED] = _calibrated(shown[list(shown)[-1]], fitted)
    beside = {f"baseline {family}": run for family, run in baselines.items()}
    pairs = tuple((CALIBRATED, name) for name in beside)
    return publish({**shown, **beside}, setting, base, "The search's winner", pairs)


def _name(number: int, seed: int) -> str:
    return f"trial-{number}-seed-{seed}"


def _stages(ranked: list[int], trained: dict[str, Run], plan: Plan, base: Recipe, setting: Setting) -> dict[str, Run]:
    """What is made of the winner, step by step; each made of the one before."""
    winner, members = ranked[0], ranked[: plan.ensemble]
    runs_of = {number: [trained[_name(number, seed)] for seed in range(plan.seeds)] for number in members}
    last = average(runs_of[winner])
    shown = {f"trial {winner}, one seed": runs_of[winner][0]}
    if plan.seeds > 1:
        shown[f"trial {winner}, {plan.seeds} seeds averaged"] = last
    if len(members) > 1:
        last = average([average(found) for found in runs_of.values()])
        shown[f"{len(members)} trials averaged"] = last
    if plan.views > 1:
        names = [_name(number, seed) for number in members for seed in range(plan.seeds)]
        shown[f"that in {plan.views} views"] = _viewed(
            last, [name for name in names if trained[name].predictions is not None], plan.views, base, setting
        )
    return shown


def _viewed(run: Run, names: list[str], views: int, base: Recipe, setting: Setting) -> Run:
    """The run's images predicted anew by these models, each image in several of its eight symmetries."""
    assert run.predictions is not None
    rows = setting.images.fold(base.validation_fold, base.test_fold)
    models = [storage.join(setting.out, name, workers.MODEL) for name in names]
    predicted = pd.DataFrame(predict_rows(models, setting.images, rows, views), rows["image_id"], PROBABILITIES)
    probabilities = predicted.loc[run.predictions["image_id"]].to_numpy()
    return Run(_with(run.predictions, probabilities), None, {**run.info, "minutes": None})


def _with(table: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    return table.assign(**dict(zip(PROBABILITIES, probabilities.T.astype(np.float32), strict=True)))


def average(found: list[Run]) -> Run:
    """The run whose probabilities are the mean of these runs'; those without a model do not count."""
    tables = [run.predictions for run in found if run.predictions is not None]
    if not tables:
        return found[0]
    probabilities = np.mean([arrays(table)[1] for table in tables], axis=0)
    if any(not table["image_id"].equals(tables[0]["image_id"]) for table in tables):
        raise AssertionError("predictions of different images cannot be averaged")
    minutes = sum(run.info.get("minutes", 0.0) for run in found)
    return Run(_with(tables[0], probabilities), None, {**found[0].info, "minutes": minutes})


def _mean_scores(best: list[int], seeds: int, trained: dict[str, Run], base: Recipe) -> dict[int, float]:
    means = {}
    for number in best:
        found = [trained[_name(number, seed)].predictions for seed in range(seeds)]
        scores = [_validation_score(table, base) for table in found if table is not None]
        if scores:
            means[number] = float(np.mean(scores))
    if not means:
        raise UserError("none of the best trials could be trained again; the reasons stand above")
    return means


def _validation_score(table: pd.DataFrame, base: Recipe) -> float:
    return _score(base)(*arrays(of_split(table, "validation")))


def _score(base: Recipe) -> calibration.Score:
    return getattr(metrics, base.select_by)  # Recipe allows names of metrics only


def _calibration(run: Run, base: Recipe, setting: Setting) -> calibration.Calibration:
    """Fitted on the validation images."""
    assert run.predictions is not None
    labels = feed.split_rows(setting.images, base)["training"]["label"]
    prior = np.bincount(labels, minlength=len(CODES)) / len(labels)
    fitted = calibration.fit(run.predictions, prior, _score(base))
    print(f"calibration on validation: temperature {fitted.temperature:.2f}, tau {fitted.tau:.2f}", flush=True)
    return fitted


def _calibrated(run: Run, fitted: calibration.Calibration) -> Run:
    assert run.predictions is not None
    return Run(fitted.applied(run.predictions), None, {**run.info, "minutes": None})
