"""The search job's choices, from options to study, tables of activations, trials and the table of what they gave."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray import tune
from rich import box
from rich.console import Console
from rich.table import Table

from ham_ray import choices, runs, storage
from ham_ray.cluster import Resources, check_shared, cluster_resources
from ham_ray.comparison import Setting
from ham_ray.data.images import Images
from ham_ray.errors import UserError
from ham_ray.evaluation.summary import Summary
from ham_ray.finals import finals
from ham_ray.models.weights import Weights
from ham_ray.recipe import Recipe, digest
from ham_ray.search import tuner
from ham_ray.search.joined import JoinedTrial
from ham_ray.search.space import Space, load_space
from ham_ray.search.study import open_study
from ham_ray.search.trial import Shared, WarmTrial, table_key
from ham_ray.training import activations, feed

SPACES = Path(__file__).parents[1] / "search_spaces"
TRIALS = "trials"
_WATCHER = 0.01  # CPUs of the process that waits for a trial's workers
NOISE = 0.04  # of a score on one validation fold of HAM10000 (2,003 images, 23 of the rarest class)


@dataclass(frozen=True)
class Options:
    """The command line of `jobs/tune_resnet.py`."""

    data: str | None
    name: str | None
    trials: int
    space: str | None
    max_concurrent: int | None
    workers_per_trial: int
    cpus_per_worker: float | None
    max_failures: int
    epochs: int | None
    weights: str
    precision: str
    shard_memory: float
    activations: float
    size: int | None
    storage: str | None
    mixed: bool
    finalists: int
    seeds: int
    ensemble: int
    smoke: bool
    out: str


@dataclass(frozen=True)
class Found:
    """What a search gave: TRIALS, the space they are from, the search's folder, and the table of the finals."""

    trials: pd.DataFrame
    space: Space
    place: str
    summary: Summary | None


def run(options: Options) -> Found:
    """Search until the study has enough finished trials, then train the best of them again.

    Raises:
        UserError: an option that cannot be met, before any trial starts; or every trial failed for one reason.
    """
    space = load_space(_space_file(options))
    if options.trials < 1:
        raise UserError(f"--trials {options.trials}: at least 1")
    if storage.is_remote(options.out) and not options.storage:
        raise UserError(f"--out {options.out}: a study needs a database; give --storage postgresql://… as well")
    choices.tell_temporary(options.out)
    out = storage.absolute(options.out)
    check_shared(out)
    means = _means(options)
    base = space.base().changed(epochs=options.epochs, precision=choices.precision(options.precision, means.gpus > 0))
    images = choices.images(options.data, options.out, options.size, options.smoke)
    weights = choices.weights(options.weights, [base], images)
    facts = _facts(space, base, images, weights)
    name = options.name or f"search-{Path(_space_file(options)).stem}-{digest(facts)}"
    place = storage.join(out, name)
    url = options.storage or f"sqlite:///{place}/study.db"
    print(f"search {name!r}: {place}")
    with storage.locked(place):
        runs.record_start(storage.join(place, "environment.json"))
        study = open_study(name, url, space, options.trials, facts, options.mixed)
        print(f"study {url}: {study.finished()} of {options.trials} trials finished", flush=True)
        if study.open():
            shared = _shared(options, space, base, images, weights, place)
            tuner.run(study, shared, means, _trainable(options, shared, images))
        table = study.table()
        _write(table, place)
    if reason := study.failing_alike():
        raise UserError(f"every trial failed for the same reason, the search was stopped: {reason}")
    summary = None
    if options.finalists:
        setting = _final_setting(options, images, weights, place)
        summary = finals(study.best(options.finalists), base, options.seeds, options.ensemble, setting)
    return Found(table, space, place, summary)


def _final_setting(options: Options, images: Images, weights: Weights, place: str) -> Setting:
    resources = cluster_resources(options.workers_per_trial, options.cpus_per_worker)
    tables = storage.join(storage.absolute(options.out), "activations")
    budgets = options.shard_memory * 2**30, options.activations * 2**30
    return Setting(images, weights, resources, storage.join(place, "finals"), budgets[0], tables, budgets[1])


def show(table: pd.DataFrame, space: Space, most: int = 10) -> None:
    """The best trials, the noise of their differences, and how many ended how."""
    ranked = table[table["state"] == "complete"].sort_values(space.objective, ascending=False).head(most)
    shown = Table(box=box.SIMPLE, title=f"best trials by {space.objective} on the validation fold")
    names = ["trial", space.objective, "epochs", *space.parameters, "seconds"]
    for name in names:
        shown.add_column(name, justify="right", overflow="fold")
    for _, row in ranked.iterrows():
        shown.add_row(*(_cell(row[name]) for name in names))
    Console().print(shown)
    counts = ", ".join(f"{count} {state}" for state, count in table["state"].value_counts().items())
    print(f"{len(table)} trials: {counts}; differences below ±{NOISE:g} are noise of one validation fold")


def _space_file(options: Options) -> str:
    if options.space:
        return options.space
    return str(SPACES / ("smoke.yaml" if options.smoke else "resnet50.yaml"))


def _resources(options: Options) -> Resources:
    """Of a trial's workers, where trials have several or one; all that run at once are added up."""
    at_once = options.max_concurrent or 1
    return cluster_resources(at_once * options.workers_per_trial, options.cpus_per_worker)


def _means(options: Options) -> tuner.Means:
    cluster = ray.cluster_resources()
    cpus, gpus = cluster.get("CPU", 1.0), int(cluster.get("GPU", 0))
    if options.workers_per_trial > 1:
        resources = _resources(options)
        print(f"resources: {resources.reason}")
        return tuner.Means(options.max_concurrent or 1, _WATCHER, 0.0, options.max_failures)
    automatic = gpus or max(1, int(cpus // 4))
    concurrent = options.max_concurrent or automatic
    if concurrent > cpus:
        raise UserError(f"--max-concurrent {concurrent}: more than the cluster's {cpus:g} CPUs")
    share = cpus / concurrent if gpus or concurrent > 1 else max(1.0, cpus - 1)
    print(
        f"trials at once: {concurrent}"
        + ("" if options.max_concurrent else f" ({'one a GPU' if gpus else 'one for each 4 CPUs, at least 1'})")
        + f", {share:g} of {cpus:g} CPUs each"
    )
    return tuner.Means(concurrent, share, gpus / concurrent if gpus else 0.0, options.max_failures)


def _trainable(options: Options, shared: Shared, images: Images) -> Any:
    """What runs a trial: a warm process, or Ray Train where it has several workers."""
    if options.workers_per_trial == 1:
        return tune.with_parameters(WarmTrial, shared=shared)
    total = _resources(options)
    resources = replace(total, workers=options.workers_per_trial)
    memory = options.shard_memory * 2**30
    return tune.with_parameters(JoinedTrial, shared=shared, images=images, resources=resources, shard_memory=memory)


def _facts(space: Space, base: Recipe, images: Images, weights: Weights) -> dict[str, Any]:
    return {
        "images": f"{images.fingerprint[:12]} at {images.size} px",
        "space": digest(space.model_dump(exclude={"points", "sampler", "scheduler"})),
        "recipe": digest(base.model_dump()),
        "weights": (weights.sha256 or weights.name)[:12],
    }


def _shared(options: Options, space: Space, base: Recipe, images: Images, weights: Weights, place: str) -> Shared:
    """What trials share, in the object store and on disk."""
    rows = feed.split_rows(images, base)
    tables, folder = {}, storage.join(storage.absolute(options.out), "activations")
    for values in space.combinations("unfreeze_depth", "augmentation"):
        recipe = base.changed(**values)
        print(f"{table_key(recipe)}: ", end="", flush=True)
        found = activations.prepare(images, rows, recipe, weights, folder, options.activations * 2**30)
        if found:
            tables[table_key(recipe)] = found
    parts = {name: feed.decoded(images, rows[name]) for name in ("training", "validation")}
    return Shared(
        base=base,
        size=images.size,
        weights=ray.put(weights),
        pixels={name: ray.put(part.inputs) for name, part in parts.items()},
        labels={name: part.labels for name, part in parts.items()},
        tables=tables,
        place=place,
        threads=max(1, runs.cores() // (options.max_concurrent or 1)),
    )


def _write(table: pd.DataFrame, place: str) -> None:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    storage.write_bytes(storage.join(place, f"{TRIALS}.parquet"), buffer.getvalue())
    storage.write_bytes(storage.join(place, f"{TRIALS}.csv"), table.to_csv(index=False).encode())


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
