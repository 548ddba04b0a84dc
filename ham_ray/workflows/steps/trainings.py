"""Recipes trained into run folders: claimed, resumed, finished, read back."""

from __future__ import annotations

import functools
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import ray.train
from ray.exceptions import RayActorError

from ham_ray import runs, storage
from ham_ray.data import card
from ham_ray.errors import in_words
from ham_ray.evaluation import calibration, predictions
from ham_ray.evaluation.calibration import Calibration
from ham_ray.inference import run_files
from ham_ray.models import registry
from ham_ray.progress import TimeLeft, Work
from ham_ray.recipe import Recipe
from ham_ray.report import summary
from ham_ray.report.summary import Run
from ham_ray.runs import CALIBRATION, CHECKPOINTS, DATA_CARD, ENVIRONMENT, HISTORY, METRICS, MODEL, PREDICTIONS, SPLIT
from ham_ray.training import activations, input_pipeline, workers
from ham_ray.training.sampler import WINDOW
from ham_ray.workflows.steps.context import TrainingContext

LEAST_SPREAD = 0.1  # of pooled features: .037 with the wrong preprocessing, 1.33 with the right one


def train(
    recipes: dict[str, Recipe],
    context: TrainingContext,
    at_once: int = 1,
    remedy: str = runs.ANOTHER,
    then: str = "trivial baselines and report",
) -> dict[str, Run]:
    """Train these recipes, `at_once` at a time, each in its folder; return the runs by name. Finished ones are read.

    Each epoch's line says how long all of them still take, and what comes `then`.

    Raises:
        UserError: a folder is of another run; the message ends in the `remedy`.
    """
    for name, recipe in recipes.items():
        runs.claim(_place(context, name), _identity(name, recipe, context), remedy)
    parts: dict[str, input_pipeline.Splits] = {}
    ahead = {name: recipe for name, recipe in recipes.items() if not _is_finished(_place(context, name))}
    time_left = TimeLeft({name: Work(_kind(one), one.epochs) for name, one in ahead.items()}, at_once, then)

    def run(name: str) -> Run:
        print(f"\n{name}: run folder {_place(context, name)}", flush=True)
        result = _finished(_place(context, name)) or _train(name, recipes[name], context, parts, time_left)
        result = replace(result, info={**result.info, "recipe": recipes[name].flat()})
        if result.predictions is not None:
            fitted = _accompany(_place(context, name), result, recipes[name], context)
            result = replace(
                result, info={**result.info, "calibration": fitted and f"predict.py gives them {fitted.verdict}"}
            )
        return result

    if at_once == 1:  # in this thread, where Ray Train hears Ctrl-C
        return {name: run(name) for name in recipes}
    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(recipes, pool.map(run, recipes), strict=True))


def _kind(recipe: Recipe) -> str:
    """Name the kind of a training: those of one kind have epochs that take about equally long."""
    return f"{recipe.family} at depth {recipe.model.unfreeze_depth}" if recipe.model.unfreeze_depth else recipe.family


def _train(
    name: str, recipe: Recipe, context: TrainingContext, parts: dict[str, input_pipeline.Splits], time_left: TimeLeft
) -> Run:
    rows = input_pipeline.split_rows(context.images, recipe)
    tables = activations.prepare(
        context.images, rows, recipe, context.weights_of(recipe), context.activations, context.activations_budget
    )
    whole = _batches(name, recipe, context) == input_pipeline.WHOLE
    window = len(rows["training"]) if whole else WINDOW
    paths = {name: table.path for name, table in tables.items()} if tables else None
    key = json.dumps([recipe.data.model_dump(), paths, window])
    if key not in parts:  # families with the same split share one decoding
        workers_of = context.elastic.least if context.elastic else context.resources.workers
        parts[key] = input_pipeline.split(
            context.images, recipe, workers_of, context.shard_memory, tables, window, ahead=context.elastic is None
        )
    uri = _place(context, name)
    runs.record_start(storage.join(uri, ENVIRONMENT))
    try:
        outcome = workers.train(
            recipe,
            context.images,
            parts[key],
            context.weights_of(recipe),
            context.resources,
            uri,
            time_left=functools.partial(time_left.advance, name),
            allowed=context.elastic,
        )
    except (ray.train.TrainingFailedError, RayActorError) as error:
        return _failed(name, recipe, in_words(error), context)
    finally:
        time_left.finish(name)
    if outcome.failed:
        return _failed(name, recipe, outcome.failed, context)
    return _finish(outcome, parts[key], recipe, context, uri)


def _failed(name: str, recipe: Recipe, reason: str, context: TrainingContext) -> Run:
    print(f"{name} stopped: {reason}; the other families go on", flush=True)
    return Run(None, None, {"weights": _weights(recipe, context), "warnings": [f"stopped: {reason}"]})


def _finish(
    outcome: workers.Outcome, parts: input_pipeline.Splits, recipe: Recipe, context: TrainingContext, uri: str
) -> Run:
    """Write HISTORY, PREDICTIONS and, last, metrics.json: with it the run is finished."""
    tables = [
        predictions.predictions(parts.rows[name], name, p, context.images.classes)
        for name, p in outcome.probabilities.items()
    ]
    predicted = pd.concat(tables, ignore_index=True)
    predictions.write(predicted, storage.join(uri, PREDICTIONS))
    with storage.writing(storage.join(uri, HISTORY)) as path:
        outcome.history.to_parquet(path, index=False)
    info = {
        "weights": _weights(recipe, context),
        "minutes": outcome.facts["seconds"] / 60,
        "commit": runs.commit(),
        "warnings": _warnings(recipe.family, outcome.facts["feature_spread"]),
        **outcome.facts,
    }
    run = Run(predicted, outcome.history, info)
    storage.write_bytes(storage.join(uri, METRICS), runs.to_json({"info": info, **summary.evaluation(run)}))
    _tidy(uri)
    return run


def _accompany(uri: str, run: Run, recipe: Recipe, context: TrainingContext) -> Calibration | None:
    """Write beside a model what predicting with it needs; return its calibration, None without validation images.

    Runs finished by older code get these files when they are read.
    """
    if storage.exists(target := storage.join(uri, CALIBRATION)):
        return run_files.calibration(target, len(context.images.classes))
    assert run.predictions is not None
    rows = input_pipeline.split_rows(context.images, recipe)
    splits = pd.concat([frame[["image_id", "group_id"]].assign(split=name) for name, frame in rows.items()])
    with storage.writing(storage.join(uri, SPLIT)) as path:
        splits.to_parquet(path, index=False)
    storage.write_bytes(storage.join(uri, DATA_CARD), card.to_json(context.images.card))
    if "validation" not in rows:
        return None
    fitted = calibration.chosen(run.predictions, prior(rows["training"], len(context.images.classes)))
    storage.write_bytes(target, runs.to_json(vars(fitted)))
    print(fitted.verdict, flush=True)
    return fitted


def prior(rows: pd.DataFrame, classes: int) -> np.ndarray:
    """Compute the class shares of these rows of IMAGES, float64[K]."""
    return np.bincount(rows["label"], minlength=classes) / len(rows)


def _warnings(family: str, spread: float) -> list[str]:
    if not registry.architecture(family).pretrained or spread >= LEAST_SPREAD:
        return []
    return [
        f"pooled features hardly differ between images (spread {spread:.3f}; expected above {LEAST_SPREAD}): "
        "wrong preprocessing or weights?"
    ]


def _finished(uri: str) -> Run | None:
    """Read back the run in a folder that is complete; None where it is not."""
    result = read_run(uri)
    if result is not None:
        _tidy(uri)
        print("already finished: reading its results (give another --name to train it again)", flush=True)
    return result


def read_run(uri: str) -> Run | None:
    """Read the finished run in a folder; None where there is none."""
    if not _is_finished(uri):
        return None
    info = storage.read_object(storage.join(uri, METRICS)).get("info", {})
    history = pd.read_parquet(io.BytesIO(storage.read_bytes(storage.join(uri, HISTORY))))
    return Run(predictions.read(storage.join(uri, PREDICTIONS)), history, info)


def _is_finished(uri: str) -> bool:
    return all(storage.exists(storage.join(uri, name)) for name in (METRICS, MODEL))


def _tidy(uri: str) -> None:
    """Delete what a finished run needs no more, and what interrupted writers left."""
    for name in storage.listdir(uri):
        if name == CHECKPOINTS or name.startswith(("ray-", ".")):
            storage.remove(storage.join(uri, name))


def _place(context: TrainingContext, name: str) -> str:
    return storage.join(context.out, name)


def _identity(name: str, recipe: Recipe, context: TrainingContext) -> dict[str, Any]:
    """Collect what must be the same for a run to go on: not the number of workers, nor where images are kept."""
    images = context.images
    return {
        "recipe": recipe.record(),
        "data": {"fingerprint": images.fingerprint, "size": images.size, **images.order},
        "weights": {"sha256": context.weights_of(recipe).sha256},
        "batches": _batches(name, recipe, context),
    }


def _batches(name: str, recipe: Recipe, context: TrainingContext) -> str:
    """Name the order of an epoch's batches. A run from before orders had windows goes on as it began."""
    recorded = str(storage.read_object(storage.join(_place(context, name), runs.IDENTITY)).get("batches", ""))
    if recorded == input_pipeline.WHOLE or recorded.startswith("streamed by "):
        return recorded
    return input_pipeline.order_name(context.images, recipe)


def _weights(recipe: Recipe, context: TrainingContext) -> str:
    if not registry.architecture(recipe.family).pretrained:
        return "from scratch"
    weights = context.weights_of(recipe)
    return weights.name if weights.content is not None else summary.RANDOM_WEIGHTS
