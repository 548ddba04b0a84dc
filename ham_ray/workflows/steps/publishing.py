"""Finished runs beside trivial baselines: a table, a page, a model card."""

from __future__ import annotations

import functools
from typing import Any

import pandas as pd

from ham_ray import runs, storage
from ham_ray.data import datasets
from ham_ray.data.images import thumbnails
from ham_ray.evaluation import predictions
from ham_ray.evaluation.exact import Interval
from ham_ray.evaluation.intervals import HOW
from ham_ray.models.trivial_baselines import trivial_baselines
from ham_ray.progress import step
from ham_ray.recipe import Recipe
from ham_ray.report import model_card, paired, report, summary
from ham_ray.report.gradcam_sheet import Attention
from ham_ray.report.summary import Run, Summary
from ham_ray.runs import METRICS, MODEL_CARD, REPORT
from ham_ray.training import input_pipeline
from ham_ray.workflows.steps.context import TrainingContext
from ham_ray.workflows.steps.gradcam import attention


def publish(
    trained: dict[str, Run],
    context: TrainingContext,
    recipes: list[Recipe],
    title: str,
    models: dict[str, str],
    pairs: tuple[tuple[str, str], ...] = (),
) -> Summary:
    """Put runs beside trivial baselines: summary.csv, summary.json, metrics.json, report.html and model_card.md.

    `recipes` say which folds were what, one for each split that test images are pooled from. `models` are the paths of
    saved models, of those runs that have one; `pairs` names runs whose difference is printed.
    """
    splits = [input_pipeline.split_rows(context.images, recipe) for recipe in recipes]
    print()
    with step("trivial baselines", "always the most frequent class; logistic regression on 12×9 thumbnails"):
        trivial = _pooled([trivial_baselines(context.images, rows) for rows in splits])
    with step("figures, intervals, comparisons"):
        images = context.images
        references = datasets.of_images(images.rows["image_id"])
        result = summary.summarise(
            trained, trivial, context.data, images.card["synthetic"], references, ungrouped=images.ungrouped
        )
        summary.write(result, context.out)
        evaluated = {name: run.assessment.facts() for name, run in trained.items() if run.predictions is not None}
        storage.write_bytes(storage.join(context.out, METRICS), runs.to_json(evaluated))
        differences = paired.differences(trained, trivial, pairs)
    looked = _looked(models, trained, context)
    counted = splits[0] if len(splits) == 1 else {"each a test image once": pd.concat(rows["test"] for rows in splits)}
    with step("report"):
        page = _report(result, trained, trivial, counted, context, recipes, title, differences, looked)
        report.write(page, storage.join(context.out, REPORT))
        storage.write_bytes(storage.join(context.out, MODEL_CARD), model_card.render(page).encode())
    for matches in differences:
        if (matches.model, matches.other) in pairs:
            values = ", ".join(f"{result.metric_names[name]} {_told(value)}" for name, value in matches.by.items())
            print(
                f"{matches.model} compared with {matches.other} on {matches.shared:,} test images of both: {values}",
                flush=True,
            )
    return result


def _looked(models: dict[str, str], trained: dict[str, Run], context: TrainingContext) -> dict[str, Attention]:
    """Draw where the saved models looked, of those runs that have predictions and a saliency map."""
    frames = {name: frame for name in models if (frame := trained[name].predictions) is not None}
    if not frames:
        return {}
    with step("saliency maps", ", ".join(frames)):
        maps = {name: attention(models[name], frame, context.images) for name, frame in frames.items()}
        if without := [name for name, one in maps.items() if one is None]:
            print(f"saliency maps: none of {', '.join(without)}, whose architecture has none", flush=True)
        return {name: one for name, one in maps.items() if one is not None}


def _source(card: dict[str, Any]) -> str:
    return "the synthetic sample" if card["synthetic"] else str(card["source"]["file"])


def _pooled(result: list[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Join the test rows of the trivial baselines of several splits; of a single split return all rows, as they are."""
    if len(result) == 1:
        return result[0]
    return {name: pd.concat([predictions.of_split(one[name], "test") for one in result]) for name in result[0]}


def _told(interval: Interval) -> str:
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _report(
    result: Summary,
    trained: dict[str, Run],
    trivial: dict[str, pd.DataFrame],
    rows: dict[str, pd.DataFrame],
    context: TrainingContext,
    recipes: list[Recipe],
    title: str,
    differences: list[paired.Difference],
    looked: dict[str, Attention],
) -> report.ReportData:
    around, data_card = runs.environment(), context.images.card
    commits = {str(run.info["commit"]) for run in trained.values() if "commit" in run.info}
    return report.ReportData(
        title=f"{title} on {len(context.images.rows):,} images of {_source(data_card)}",
        summary=result,
        runs=trained,
        trivial=trivial,
        facts={
            "command": around["command"],
            "commit": around["commit"],
            "models trained at": ", ".join(sorted(commits)),
            "machine": around["machine"],
            "workers": context.resources.reason,
            "time": around["time"],
            "intervals": HOW,
            "packages": ", ".join(f"{name} {version}" for name, version in around["packages"].items()),
        },
        counts=report.class_counts(rows, context.images.classes),
        classes=context.images.classes,
        split=report.LESION_SPLIT + (report.UNGROUPED if context.images.ungrouped else ""),
        fingerprint=context.images.fingerprint,
        licence=data_card["licence"],
        attribution=data_card["attribution"],
        differences=differences,
        attention=looked,
        thumbnails=functools.partial(thumbnails, context.images),
        selection=f"validation {summary.METRIC_NAMES[recipes[0].select_by]}, {_validated(trained, recipes)}",
    )


def _validated(trained: dict[str, Run], recipes: list[Recipe]) -> str:
    """Say on which folds the runs were validated."""
    if len(recipes) > 1:
        return "on the fold after each test fold"
    result = {recipe.data.validation_fold for recipe in recipes if recipe.data.validation_fold is not None}.union(
        *(
            predictions.of_split(run.predictions, "validation")["fold"].tolist()
            for run in trained.values()
            if run.predictions is not None
        )
    )
    if len(result) == 1:
        return f"fold {recipes[0].data.validation_fold}"
    return f"folds {', '.join(map(str, sorted(result)))}, one for each training, which learned from the others"
