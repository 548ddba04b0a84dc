"""After a search: its best trials trained again with several seeds, one of them named, and only then the test fold.

Validation chooses: the winner by its mean score over seeds, the temperature, tau. A difference between two trials of
one validation fold says little; a mean over seeds says more.
"""

from __future__ import annotations

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
from ham_ray.recipe import Recipe
from ham_ray.training import feed

WINNER = "winner.json"
CALIBRATED = "the last one, calibrated"


def finals(
    best: list[FrozenTrial], base: Recipe, seeds: int, ensemble: int, setting: Setting, baselines: dict[str, Run]
) -> Summary:
    """Train the best trials with seeds 0, 1, …, name the winner, and show its test figures beside the baselines'.

    The table has the winner with one seed (the first, not the best), with all its seeds averaged, that calibrated, and
    with `ensemble` > 1 the average over that many trials.

    Raises:
        UserError: no trial is complete, or none of the best could be trained again.
    """
    if not best:
        raise UserError("no trial is complete: there is nothing to train again")
    recipes = {
        f"trial-{trial.number}-seed-{seed}": base.changed(**{**trial.params, "seed": seed})
        for trial in best
        for seed in range(seeds)
    }
    trained = train(recipes, setting)
    averaged = {
        f"trial {trial.number}": average([trained[f"trial-{trial.number}-seed-{seed}"] for seed in range(seeds)])
        for trial in best
    }
    means = _mean_scores(best, seeds, trained, base)
    ranked = sorted(means, key=lambda name: -means[name])
    for name in ranked:
        print(f"{name}: validation {base.select_by} {means[name]:.3f}, mean of {seeds} seed(s)", flush=True)
    shown = {f"{ranked[0]}, one seed": trained[f"trial-{ranked[0].split()[1]}-seed-0"]}
    chosen = averaged[ranked[0]]
    if seeds > 1:
        shown[f"{ranked[0]}, {seeds} seeds averaged"] = chosen
    if ensemble > 1:
        chosen = average([averaged[name] for name in ranked[:ensemble]])
        shown[f"{min(ensemble, len(ranked))} trials averaged"] = chosen
    fitted = _calibrated(chosen, base, setting)
    shown[CALIBRATED] = fitted[0]
    winner = {"trial": ranked[0], "scores": means, "calibration": vars(fitted[1])}
    storage.write_bytes(storage.join(setting.out, WINNER), runs.to_json(winner))
    beside = {f"baseline {family}": run for family, run in baselines.items()}
    pairs = tuple((CALIBRATED, name) for name in beside)
    return publish({**shown, **beside}, setting, base, "The search's winner", pairs)


def average(found: list[Run]) -> Run:
    """The run whose probabilities are the mean of these runs'; those without a model do not count."""
    tables = [run.predictions for run in found if run.predictions is not None]
    if not tables:
        return found[0]
    probabilities = np.mean([arrays(table)[1] for table in tables], axis=0)
    columns = dict(zip(PROBABILITIES, probabilities.T.astype(np.float32), strict=True))
    if any(not table["image_id"].equals(tables[0]["image_id"]) for table in tables):
        raise AssertionError("predictions of different images cannot be averaged")
    minutes = sum(run.info.get("minutes", 0.0) for run in found)
    return Run(tables[0].assign(**columns), None, {**found[0].info, "minutes": minutes})


def _mean_scores(best: list[FrozenTrial], seeds: int, trained: dict[str, Run], base: Recipe) -> dict[str, float]:
    means = {}
    for trial in best:
        found = [trained[f"trial-{trial.number}-seed-{seed}"].predictions for seed in range(seeds)]
        scores = [_validation_score(table, base) for table in found if table is not None]
        if scores:
            means[f"trial {trial.number}"] = float(np.mean(scores))
    if not means:
        raise UserError("none of the best trials could be trained again; the reasons stand above")
    return means


def _validation_score(table: pd.DataFrame, base: Recipe) -> float:
    return _score(base)(*arrays(of_split(table, "validation")))


def _score(base: Recipe) -> calibration.Score:
    return getattr(metrics, base.select_by)  # Recipe allows names of metrics only


def _calibrated(run: Run, base: Recipe, setting: Setting) -> tuple[Run, calibration.Calibration]:
    assert run.predictions is not None
    labels = feed.split_rows(setting.images, base)["training"]["label"]
    prior = np.bincount(labels, minlength=len(CODES)) / len(labels)
    fitted = calibration.fit(run.predictions, prior, _score(base))
    print(f"calibration on validation: temperature {fitted.temperature:.2f}, tau {fitted.tau:.2f}", flush=True)
    return Run(fitted.applied(run.predictions), None, {**run.info, "minutes": None}), fitted
