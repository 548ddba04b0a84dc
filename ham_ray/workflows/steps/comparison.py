"""Baselines on one split of the images, or on all five, and their test predictions pooled."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ham_ray import storage
from ham_ray.evaluation import thresholds
from ham_ray.evaluation.predictions import arrays, classes_of, of_split, with_calls
from ham_ray.recipe import Recipe
from ham_ray.report.summary import Run, Summary
from ham_ray.runs import MODEL
from ham_ray.workflows.steps.context import TrainingContext
from ham_ray.workflows.steps.external import External, tested
from ham_ray.workflows.steps.publishing import publish
from ham_ray.workflows.steps.trainings import train


def compare(recipes: dict[str, Recipe], context: TrainingContext, externals: Sequence[External] = ()) -> Summary:
    """Train each family that is not finished yet, evaluate all, and write summary.csv, summary.json and report.html.

    A family that fails has its reason in the table; the others go on. Each is tested on the `externals` too.
    """
    trained = train(recipes, context)
    models = {name: storage.join(context.out, name, MODEL) for name in trained}
    finished = {name: [storage.join(context.out, name)] for name, run in trained.items() if run.predictions is not None}
    return publish(
        {**trained, **tested(externals, finished, context.out)},
        context,
        [next(iter(recipes.values()))],
        "Baselines",
        models,
    )


def cross_validate(
    recipes: dict[str, Recipe], context: TrainingContext, at_once: int = 1, externals: Sequence[External] = ()
) -> Summary:
    """Train each recipe on each split that is not finished yet, `at_once` at a time, and report pooled test figures.

    The fold after the test fold validates. A family of which a training failed has the reason and no figures. On the
    `externals` the models of a family's splits are averaged.
    """
    splits = {name: _splits(name, recipe) for name, recipe in recipes.items()}
    trained = train({run: recipe for result in splits.values() for run, recipe in result.items()}, context, at_once)
    pooled = {name: pool([trained[run] for run in result]) for name, result in splits.items()}
    finished = {
        name: [storage.join(context.out, run) for run in splits[name]]
        for name, run in pooled.items()
        if run.predictions is not None
    }
    every = {**pooled, **tested(externals, finished, context.out)}
    return publish(every, context, [*next(iter(splits.values())).values()], "Cross-validated baselines", {})


def _splits(name: str, recipe: Recipe) -> dict[str, Recipe]:
    return {f"{name}-fold-{split.data.test_fold}": split for split in recipe.crossed()}


def pool(result: list[Run]) -> Run:
    """Join the test predictions of all runs as one run; without predictions where one run has none."""
    warnings = list(dict.fromkeys(text for run in result for text in run.info.get("warnings", ())))
    if any(run.predictions is None for run in result):
        return Run(None, None, {"warnings": warnings})
    tables = [_test(run.predictions) for run in result if run.predictions is not None]
    minutes = sum(run.info.get("minutes", 0.0) for run in result)
    info = {"weights": result[0].info.get("weights"), "minutes": minutes, "warnings": warnings}
    info["commit"] = ", ".join(dict.fromkeys(str(run.info.get("commit")) for run in result))
    return Run(pd.concat(tables, ignore_index=True, join="inner"), None, info)  # inner: the calls that all of them have


def _test(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the test rows, with calls of the class in focus by thresholds of the training's own validation images."""
    test, validation = (of_split(predictions, split) for split in ("test", "validation"))
    return with_calls(test, thresholds.choose(*arrays(validation), classes_of(validation).focus_label))
