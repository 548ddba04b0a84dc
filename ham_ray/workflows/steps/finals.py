"""After a search: its best trials trained again several times, one of them named, and only then the test fold.

Each training of a trial has another seed and validates on another fold (cross-validation): a difference between two
trials on one validation fold says little, a mean over folds says more, and together the trainings have learned from all
folds but the test fold. Validation chooses: the winner by its mean score, the temperature, tau. With `refit` what was
chosen is trained once more, by images of all those folds at once.

Scores are of adjusted predictions (`calibration.fit`): how readily a model calls rare classes can be set afterwards, so
one that happens to call them more often is not the better one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial

from ham_ray import runs, storage
from ham_ray.errors import UserError
from ham_ray.evaluation import calibration
from ham_ray.evaluation.calibration import Calibration
from ham_ray.evaluation.predictions import arrays, classes_of, of_split, with_calls
from ham_ray.inference.pipeline import predict_rows
from ham_ray.recipe import Recipe
from ham_ray.report.summary import Run, Summary
from ham_ray.runs import MODEL, WINNER
from ham_ray.training import input_pipeline
from ham_ray.workflows.steps.context import TrainingContext
from ham_ray.workflows.steps.external import External, tested
from ham_ray.workflows.steps.publishing import publish
from ham_ray.workflows.steps.trainings import prior, train

CALIBRATED = "the last one, calibrated"
_SCORE = "mean of balanced accuracy and macro-F1 on validation, adjusted"


@dataclass(frozen=True)
class Plan:
    """How the best are trained again: trainings of each, trials averaged (1 = the winner), views of each image."""

    seeds: int
    ensemble: int = 1
    views: int = 1
    refit: bool = False  # whether what was chosen learns from the validation folds too, in the end
    earlier: tuple[str, ...] = ()  # finals of the same search that looked at the test fold before
    externals: tuple[External, ...] = ()


def finals(
    best: list[FrozenTrial], base: Recipe, plan: Plan, context: TrainingContext, beside: dict[str, Run]
) -> Summary:
    """Train the best trials with seeds 0, 1, …, name the winner, and show its test figures and the runs `beside` it.

    The table has one training of the winner (the first that ended, not the best) and then, each on top of the one
    before: the average of its trainings, of several trials, of several views, of those trained on the validation folds
    too, and that calibrated, where calibration helps on validation images it was not fitted on.

    Raises:
        UserError: no trial is complete, or none of the best could be trained again.
    """
    if not best:
        raise UserError("no trial is complete: there is nothing to train again")
    tried = _trained({trial.number: _recipes(trial, base, plan.seeds) for trial in best}, context)
    shares = prior(input_pipeline.split_rows(context.images, base)["training"], len(context.images.classes))
    means = _means(tried, shares)
    ranked = [*means]
    members = {number: tried[number] for number in ranked[: plan.ensemble]}
    shown = _stages(members, plan.views, context)
    for name, run in shown.items():
        print(f"{name}: {_score(run, shares):.3f}; {_SCORE}", flush=True)
    fitted = calibration.chosen(_table(_last(shown)), shares)
    print(fitted.verdict, flush=True)
    if plan.refit:
        chosen = [trial for trial in best if trial.number in members]
        members = _trained({trial.number: _refits(trial, base, plan.seeds) for trial in chosen}, context)
        again = members if plan.views == 1 else _in_views(members, plan.views, context)
        shown[f"trained on the validation folds too, {sum(map(len, again.values()))} averaged"] = _joined(again)
    named, path = {str(number): [*matches] for number, matches in members.items()}, storage.join(context.out, WINNER)
    looks = _looks(path, named, plan.earlier)
    winner = {
        "trial": ranked[0],
        "scores": means,
        "members": named,
        "views": plan.views,
        "calibration": vars(fitted),
        "looks": looks,
    }
    storage.write_bytes(path, runs.to_json(winner))
    result = CALIBRATED if fitted.helps else [*shown][-1]
    shown[result] = _calibrated(_last(shown), fitted, looks)
    shown |= tested(plan.externals, {result: [context.out]}, context.out)
    pairs = tuple((result, name) for name in beside)
    first = next(iter(tried[ranked[0]]))
    models = {next(iter(shown)): storage.join(context.out, first, MODEL)}
    return publish({**shown, **beside}, context, [base], "The search's winner", models, pairs)


def _means(tried: dict[int, dict[str, Run]], shares: np.ndarray) -> dict[int, float]:
    """Compute the mean score of each trial's trainings, best first, and print it."""
    means = {n: float(np.mean([_score(run, shares) for run in result.values()])) for n, result in tried.items()}
    ranked = sorted(means, key=lambda number: -means[number])
    for number in ranked:
        print(f"trial {number}: {means[number]:.3f}, mean of {len(tried[number])} training(s); {_SCORE}")
    return {number: means[number] for number in ranked}


def _trained(recipes: dict[int, dict[str, Recipe]], context: TrainingContext) -> dict[int, dict[str, Run]]:
    """Train these recipes; return the runs that ended with a model, by trial and name.

    Trials without any such run are left out.

    Raises:
        UserError: no run ended with a model.
    """
    remedy = f"The search itself can go on: take `finals:` and --epochs as they were, or move {context.out} away"
    result = train(
        {name: recipe for named in recipes.values() for name, recipe in named.items()}, context, remedy=remedy
    )
    ended = {
        n: {name: result[name] for name in named if result[name].predictions is not None}
        for n, named in recipes.items()
    }
    if not any(ended.values()):
        raise UserError("none of the best trials could be trained again; the reasons stand above")
    return {number: named for number, named in ended.items() if named}


def _looks(path: str, members: dict[str, list[str]], earlier: tuple[str, ...]) -> list[str]:
    """List what must be said where the test fold was looked at before, by other finals or by other models of these."""
    before = storage.read_object(path)
    named = before.get("members", members)  # which older code did not write
    who = [] if named == members else [", ".join(name for result in named.values() for name in result)]
    who += [f"{', '.join(earlier)} of the same search"] if earlier else []
    message = [f"not the first look at the test fold: {one} looked before" for one in who]
    return [*dict.fromkeys([*before.get("looks", []), *message])]


def _recipes(trial: FrozenTrial, base: Recipe, seeds: int) -> dict[str, Recipe]:
    """Make the trial's recipe with each seed, validated on each fold in turn: first on that of the search."""
    folds = [base.data.validation_fold, *base.training_folds]
    return {
        f"trial-{trial.number}-seed-{seed}": base.changed(
            **trial.params, seed=seed, validation_fold=folds[seed % len(folds)]
        )
        for seed in range(seeds)
    }


def _refits(trial: FrozenTrial, base: Recipe, seeds: int) -> dict[str, Recipe]:
    """Make the trial's recipe with each seed, on all folds but the test fold."""
    return {
        f"trial-{trial.number}-refit-{seed}": base.changed(**trial.params, seed=seed).refit() for seed in range(seeds)
    }


def _stages(members: dict[int, dict[str, Run]], views: int, context: TrainingContext) -> dict[str, Run]:
    """Average the winner's trainings, then several trials, then several views: the runs, by name, in this order.

    The winner is the first of `members`.
    """
    winner, own = next(iter(members.items()))
    shown = {f"trial {winner}, one training": next(iter(own.values()))}
    if len(own) > 1:
        shown[f"trial {winner}, {len(own)} trainings averaged"] = average([*own.values()])
    if len(members) > 1:
        shown[f"{len(members)} trials averaged"] = _joined(members)
    if views > 1:
        shown[f"that in {views} views"] = _joined(_in_views(members, views, context))
    return shown


def _in_views(members: dict[int, dict[str, Run]], views: int, context: TrainingContext) -> dict[int, dict[str, Run]]:
    return {
        number: {name: _viewed(name, run, views, context) for name, run in result.items()}
        for number, result in members.items()
    }


def _last(shown: dict[str, Run]) -> Run:
    return shown[list(shown)[-1]]


def _calibrated(run: Run, fitted: Calibration, looks: list[str]) -> Run:
    """Adjust the run's predictions; without validation images, add the calls of the fitted thresholds."""
    table = fitted.applied(_table(run))
    if of_split(table, "validation").empty:
        table = with_calls(table, fitted.thresholds)
    warnings = [*run.info.get("warnings", ()), *looks, *([] if fitted.helps else [fitted.verdict])]
    minutes = None if fitted.helps else run.info.get("minutes")  # a row of its own took none
    return Run(table, None, {**run.info, "minutes": minutes, "warnings": warnings, "calibration": fitted.verdict})


def _joined(members: dict[int, dict[str, Run]]) -> Run:
    """Average the trials with equal weight, however many of their trainings ended."""
    return average([average([*result.values()]) for result in members.values()])


def _viewed(name: str, run: Run, views: int, context: TrainingContext) -> Run:
    """Predict the run's images anew by its model, each image in several of its eight symmetries."""
    table = _table(run)
    rows = context.images.fold(*table["fold"].unique().tolist())
    model = storage.join(context.out, name, MODEL)
    predicted = pd.DataFrame(predict_rows(model, context.images, rows, views), rows["image_id"])
    return Run(_with(table, predicted.loc[table["image_id"]].to_numpy()), None, run.info)


def _table(run: Run) -> pd.DataFrame:
    """Return the predictions of a run that ended with a model."""
    assert run.predictions is not None
    return run.predictions


def _with(table: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    return table.assign(**dict(zip(classes_of(table).probabilities, probabilities.T.astype(np.float32), strict=True)))


def average(result: list[Run]) -> Run:
    """Average the probabilities of each image over the runs that predicted it; all runs ended with a model.

    So a test image has the mean of all runs, a validation image that of the runs that did not learn from it.
    """
    together = pd.concat([_table(run) for run in result], ignore_index=True)
    means = together.groupby("image_id", sort=False)[classes_of(together).probabilities].mean()
    table = together.drop_duplicates("image_id", ignore_index=True)  # in the order of the means
    minutes = sum(run.info.get("minutes", 0.0) for run in result)
    return Run(_with(table, means.to_numpy()), None, {**result[0].info, "minutes": minutes, "calibration": None})


def _score(run: Run, shares: np.ndarray) -> float:
    """Score a run on validation, at the best adjustment for training images with these class shares."""
    adjusted = calibration.fit(_table(run), shares).applied(_table(run))
    return calibration.mean_ba_macro_f1(*arrays(of_split(adjusted, "validation")))
