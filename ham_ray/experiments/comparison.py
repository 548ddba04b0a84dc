"""Families trained on one split of one data set, evaluated beside the floors: folders, table and page."""

from __future__ import annotations

import functools
import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import ray.train

from ham_ray import runs, storage
from ham_ray.cluster import Resources
from ham_ray.data import card
from ham_ray.data.images import Images, thumbnails
from ham_ray.diagnoses import CODES
from ham_ray.evaluation import calibration, metrics, model_card, predictions, report, summary
from ham_ray.evaluation.attention_sheet import Attention
from ham_ray.evaluation.floors import floors
from ham_ray.evaluation.intervals import Interval
from ham_ray.evaluation.summary import Run, Summary
from ham_ray.experiments.looking import attention
from ham_ray.models import families
from ham_ray.models.weights import Weights
from ham_ray.recipe import Recipe
from ham_ray.runs import (
    CALIBRATION,
    CHECKPOINTS,
    DATA_CARD,
    ENVIRONMENT,
    HISTORY,
    METRICS,
    MODEL,
    MODEL_CARD,
    PREDICTIONS,
    REPORT,
    SPLIT,
)
from ham_ray.training import activations, feed, workers

LEAST_SPREAD = 0.1  # of pooled features: .037 with the wrong preprocessing, 1.33 with the right one


@dataclass(frozen=True)
class Setting:
    """What all families of a comparison share."""

    images: Images
    weights: Weights
    resources: Resources
    out: str
    shard_memory: float
    activations: str  # the folder of tables that runs share
    activations_budget: float

    @property
    def data(self) -> str:
        """The data in words."""
        return f"{self.images.card['source']['file']} at {self.images.size} px"


def compare(recipes: dict[str, Recipe], setting: Setting) -> Summary:
    """Train each family that is not finished yet, evaluate all, and write summary.csv, summary.json and report.html.

    A family that fails has its reason in the table; the others go on.
    """
    trained = train(recipes, setting)
    models = {name: storage.join(_place(setting, name), MODEL) for name in trained}
    return publish(trained, setting, [next(iter(recipes.values()))], "Baselines", models)


def train(recipes: dict[str, Recipe], setting: Setting, at_once: int = 1) -> dict[str, Run]:
    """The runs of these recipes by name, each in its folder; finished ones are read. So many are trained `at_once`."""
    for name, recipe in recipes.items():
        runs.claim(_place(setting, name), _identity(recipe, setting))
    parts: dict[str, feed.Splits] = {}

    def run(name: str) -> Run:
        print(f"\n{name}: run folder {_place(setting, name)}", flush=True)
        found = _finished(_place(setting, name)) or _train(name, recipes[name], setting, parts)
        if found.predictions is not None:
            _accompany(_place(setting, name), found, recipes[name], setting)
        return found

    if at_once == 1:  # in this thread, where Ray Train hears Ctrl-C
        return {name: run(name) for name in recipes}
    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(recipes, pool.map(run, recipes), strict=True))


def publish(
    trained: dict[str, Run],
    setting: Setting,
    recipes: list[Recipe],
    title: str,
    models: dict[str, str],
    pairs: tuple[tuple[str, str], ...] = (),
) -> Summary:
    """Put runs beside the floors: summary.csv, summary.json, report.html and model_card.md.

    `recipes` say which folds were what, one for each split that test images are pooled from. `models` are the places of
    saved models, of those runs that have one; `pairs` names runs whose difference is told.
    """
    splits = [feed.split_rows(setting.images, recipe) for recipe in recipes]
    print("\nfloors: always the most frequent class; logistic regression on 12×9 thumbnails", flush=True)
    floor = _pooled([floors(setting.images, rows) for rows in splits])
    result = summary.summarise(trained, floor, setting.data, setting.images.card["synthetic"])
    summary.write(result, setting.out)
    differences = report.differences(trained, floor, pairs)
    looked = {
        name: attention(uri, frame, setting.images)
        for name, uri in models.items()
        if (frame := trained[name].predictions) is not None
    }
    counted = splits[0] if len(splits) == 1 else {"each a test image once": pd.concat(rows["test"] for rows in splits)}
    page = _report(result, trained, floor, counted, setting, recipes, title, differences, looked)
    report.write(page, storage.join(setting.out, REPORT))
    storage.write_bytes(storage.join(setting.out, MODEL_CARD), model_card.render(page).encode())
    for found in differences:
        if (found.model, found.other) in pairs:
            values = ", ".join(f"{summary.METRIC_NAMES[name]} by {_told(value)}" for name, value in found.by.items())
            print(f"{found.model} is better than {found.other}, on the same test images: {values}", flush=True)
    return result


def _pooled(found: list[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """The floors of several splits as one: their test rows. Of a single split all rows, as they are."""
    if len(found) == 1:
        return found[0]
    return {name: pd.concat([predictions.of_split(one[name], "test") for one in found]) for name in found[0]}


def _told(interval: Interval) -> str:
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _train(name: str, recipe: Recipe, setting: Setting, parts: dict[str, feed.Splits]) -> Run:
    rows = feed.split_rows(setting.images, recipe)
    tables = activations.prepare(
        setting.images, rows, recipe, setting.weights, setting.activations, setting.activations_budget
    )
    key = json.dumps([recipe.model_dump(include={"test_fold", "validation_fold", "batch_size"}), tables])
    if key not in parts:  # families with the same split share one decoding
        parts[key] = feed.split(setting.images, recipe, setting.resources.workers, setting.shard_memory, tables)
    uri = _place(setting, name)
    runs.record_start(storage.join(uri, ENVIRONMENT))
    try:
        outcome = workers.train(recipe, setting.images, parts[key], setting.weights, setting.resources, uri)
    except ray.train.TrainingFailedError as error:
        return _failed(name, recipe, str(error).strip().splitlines()[-1], setting)
    if outcome.failed:
        return _failed(name, recipe, outcome.failed, setting)
    return _finish(outcome, parts[key], recipe, setting, uri)


def _failed(name: str, recipe: Recipe, reason: str, setting: Setting) -> Run:
    print(f"{name} stopped: {reason}; the other families go on", flush=True)
    return Run(None, None, {"weights": _weights(recipe.family, setting), "warnings": [f"stopped: {reason}"]})


def _finish(outcome: workers.Outcome, parts: feed.Splits, recipe: Recipe, setting: Setting, uri: str) -> Run:
    """Write HISTORY, PREDICTIONS and, last, metrics.json: with it the run is finished."""
    tables = [predictions.predictions(parts.rows[name], name, p) for name, p in outcome.probabilities.items()]
    predicted = pd.concat(tables, ignore_index=True)
    predictions.write(predicted, storage.join(uri, PREDICTIONS))
    with storage.writing(storage.join(uri, HISTORY)) as path:
        outcome.history.to_parquet(path, index=False)
    info = {
        "weights": _weights(recipe.family, setting),
        "minutes": outcome.facts["seconds"] / 60,
        "commit": runs.commit(),
        "warnings": _warnings(recipe.family, outcome.facts["feature_spread"]),
        **outcome.facts,
    }
    evaluated = {"info": info, **summary.evaluation(predicted)}
    storage.write_bytes(storage.join(uri, METRICS), runs.to_json(evaluated))
    _tidy(uri)
    return Run(predicted, outcome.history, info)


def _accompany(uri: str, run: Run, recipe: Recipe, setting: Setting) -> None:
    """Leave beside a model what predicting with it needs; runs finished by older code get it when they are read."""
    if storage.exists(storage.join(uri, CALIBRATION)):
        return
    assert run.predictions is not None
    rows = feed.split_rows(setting.images, recipe)
    splits = pd.concat([frame[["image_id", "group_id"]].assign(split=name) for name, frame in rows.items()])
    with storage.writing(storage.join(uri, SPLIT)) as path:
        splits.to_parquet(path, index=False)
    storage.write_bytes(storage.join(uri, DATA_CARD), card.to_json(setting.images.card))
    fitted = calibration.fit(run.predictions, prior(rows["training"]), getattr(metrics, recipe.select_by))
    storage.write_bytes(storage.join(uri, CALIBRATION), runs.to_json(vars(fitted)))


def prior(rows: pd.DataFrame) -> np.ndarray:
    """The class shares of these rows of IMAGES, float64[7]."""
    return np.bincount(rows["label"], minlength=len(CODES)) / len(rows)


def _warnings(family: str, spread: float) -> list[str]:
    if not families.pretrained(family) or spread >= LEAST_SPREAD:
        return []
    return [
        f"pooled features hardly differ between images (spread {spread:.3f}; expected above {LEAST_SPREAD}): "
        "wrong preprocessing or weights?"
    ]


def _finished(uri: str) -> Run | None:
    """The run whose folder is complete, read back; None where it is not."""
    found = read_run(uri)
    if found is not None:
        _tidy(uri)
        print("already finished: reading its results (give another --name to train it again)", flush=True)
    return found


def read_run(uri: str) -> Run | None:
    """The finished run in a folder; None where there is none."""
    if not all(storage.exists(storage.join(uri, name)) for name in (METRICS, MODEL)):
        return None
    info = json.loads(storage.read_bytes(storage.join(uri, METRICS)))["info"]
    history = pd.read_parquet(io.BytesIO(storage.read_bytes(storage.join(uri, HISTORY))))
    return Run(predictions.read(storage.join(uri, PREDICTIONS)), history, info)


def _tidy(uri: str) -> None:
    """Delete what a finished run needs no more, and what killed writers left."""
    for name in storage.listdir(uri):
        if name == CHECKPOINTS or name.startswith(("ray-", ".")):
            storage.remove(storage.join(uri, name))


def _place(setting: Setting, name: str) -> str:
    return storage.join(setting.out, name)


def _identity(recipe: Recipe, setting: Setting) -> dict[str, Any]:
    """What must be the same for a run to go on. The number of workers need not be, where their images fit in memory."""
    pretrained = families.pretrained(recipe.family)
    return {
        "recipe": recipe.model_dump(),
        "data": {"fingerprint": setting.images.fingerprint, "size": setting.images.size},
        "weights": {"sha256": setting.weights.sha256 if pretrained else None},
        "batches": feed.batching(setting.images, recipe, setting.resources.workers, setting.shard_memory),
    }


def _weights(family: str, setting: Setting) -> str:
    if not families.pretrained(family):
        return "from scratch"
    return setting.weights.name if setting.weights.content is not None else summary.RANDOM_WEIGHTS


def _report(
    result: Summary,
    trained: dict[str, Run],
    floor: dict[str, pd.DataFrame],
    rows: dict[str, pd.DataFrame],
    setting: Setting,
    recipes: list[Recipe],
    title: str,
    differences: list[report.Difference],
    looked: dict[str, Attention],
) -> report.ReportData:
    around, data_card = runs.environment(), setting.images.card
    commits = {str(run.info["commit"]) for run in trained.values() if run.predictions is not None}
    return report.ReportData(
        title=f"{title} on the synthetic sample" if data_card["synthetic"] else f"{title} on HAM10000",
        summary=result,
        runs=trained,
        floors=floor,
        facts={
            "command": around["command"],
            "commit": around["commit"],
            "models trained at": ", ".join(sorted(commits)),
            "machine": around["machine"],
            "workers": setting.resources.reason,
            "time": around["time"],
            "packages": ", ".join(f"{name} {version}" for name, version in around["packages"].items()),
        },
        counts=report.class_counts(rows),
        fingerprint=setting.images.fingerprint,
        licence=data_card["licence"],
        attribution=data_card["attribution"],
        differences=differences,
        attention=looked,
        thumbnails=functools.partial(thumbnails, setting.images),
        selection=f"validation {summary.METRIC_NAMES[recipes[0].select_by]}, {_validated(trained, recipes)}",
    )


def _validated(trained: dict[str, Run], recipes: list[Recipe]) -> str:
    """On which folds, in words."""
    if len(recipes) > 1:
        return "on the fold after each test fold"
    found = {recipes[0].validation_fold}.union(
        *(
            predictions.of_split(run.predictions, "validation")["fold"].tolist()
            for run in trained.values()
            if run.predictions is not None
        )
    )
    if len(found) == 1:
        return f"fold {recipes[0].validation_fold}"
    return f"folds {', '.join(map(str, sorted(found)))}, one for each training, which learned from the others"
