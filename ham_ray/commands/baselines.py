"""The baseline job's choices, from options to data, recipes, weights and resources; automatic ones with reason."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ham_ray import runs, storage
from ham_ray.cluster import Resources, check_shared, cluster_resources
from ham_ray.commands import choices
from ham_ray.data.images import FOLDS, Images
from ham_ray.errors import UserError
from ham_ray.evaluation.summary import Run, Summary
from ham_ray.experiments.comparison import compare, cross_validate
from ham_ray.experiments.setting import make_setting
from ham_ray.experiments.trainings import read_run
from ham_ray.recipe import BASELINES, Recipe, baseline, digest
from ham_ray.runs import ENVIRONMENT, REPORT


@dataclass(frozen=True)
class Options:
    """The command line of `jobs/baseline.py`."""

    data: str | None
    families: list[str]
    weights: str
    epochs: int | None
    workers: int
    cpus_per_worker: float | None
    wait_for_nodes: bool
    precision: str
    changes: list[str]
    cross_validate: bool
    shard_memory: float
    activations: float
    size: int | None
    name: str | None
    smoke: bool
    out: str


def run(options: Options) -> tuple[Summary, str]:
    """Choose, print every choice, compare. Returns the summary and the place of the report.

    Raises:
        UserError: an option that cannot be met; before anything is trained.
    """
    choices.tell_temporary(options.out)
    resources, at_once = _resources(options)
    print(f"resources: {resources.reason}", flush=True)
    check_shared(storage.absolute(options.out))
    precision = choices.precision(options.precision, resources.use_gpu)
    recipes = make_recipes(options, precision)
    images = choices.images(options.data, options.out, options.size, options.smoke)
    weights = choices.weights(options.weights, list(recipes.values()), images)
    parts = [[recipe.model_dump() for recipe in recipes.values()], images.fingerprint, weights.sha256]
    kind = "crossed" if options.cross_validate else "baseline"
    name = options.name or f"{kind}-{digest(*parts)}"
    place = storage.join(storage.absolute(options.out), name)
    setting = make_setting(images, weights, resources, place, options)
    with storage.locked(place):
        found = cross_validate(recipes, setting, at_once) if options.cross_validate else compare(recipes, setting)
        return found, storage.join(place, REPORT)


def _resources(options: Options) -> tuple[Resources, int]:
    """Of each training, and how many trainings there are at once: those of a cross-validation, where they fit."""
    alone = cluster_resources(options.workers, options.cpus_per_worker, options.wait_for_nodes)
    together = FOLDS * len(options.families) if options.cross_validate else 1
    for at_once in range(together, 1, -1):
        try:
            found = cluster_resources(options.workers * at_once, options.cpus_per_worker, options.wait_for_nodes)
        except UserError:
            continue
        if found.cpus_per_worker >= 1 and found.use_gpu == alone.use_gpu:
            reason = f"{at_once} trainings at once; together {found.reason}"
            return replace(found, workers=options.workers, reason=reason), at_once
    return alone, 1


def make_recipes(options: Options, precision: str) -> dict[str, Recipe]:
    """The recipe of each family named in the options.

    Raises:
        UserError: an unknown family or field, or a value out of range.
    """
    names = [family.strip() for family in options.families if family.strip()]
    if not names:
        raise UserError("--families: name at least one, for example simple_cnn,resnet50_finetuned")
    synthetic = options.data is None
    recipes = {name: _recipe(name, precision, synthetic, options.smoke, options.epochs) for name in names}
    return {name: recipe.changed(**_parsed(options.changes)) for name, recipe in recipes.items()}


def finished(out: str, images: Images, precision: str) -> dict[str, Run]:
    """The latest finished run of each baseline below `out`: of these images, by the recipe this job takes by itself."""
    own = {name: _recipe(name, precision, images.card["synthetic"]).model_dump() for name in BASELINES}
    data = {"fingerprint": images.fingerprint, "size": images.size}
    recorded = {uri: _recorded(uri) for group in storage.folders(out) for uri in storage.folders(group)}
    same = [uri for uri, it in recorded.items() if it.get("data") == data and it["recipe"] in own.values()]
    latest_last = sorted(same, key=lambda uri: runs.last_start(storage.join(uri, ENVIRONMENT)))
    read = {uri: read_run(uri) for uri in latest_last}
    return {recorded[uri]["recipe"]["family"]: run for uri, run in read.items() if run}


def _recorded(uri: str) -> dict[str, Any]:
    """The identity of the run in a folder; empty where it holds none."""
    place = storage.join(uri, runs.IDENTITY)
    return json.loads(storage.read_bytes(place)) if storage.exists(place) else {}


def _recipe(family: str, precision: str, synthetic: bool, smoke: bool = False, epochs: int | None = None) -> Recipe:
    """What this job takes for a family: smaller on the synthetic sample, and for `smoke`."""
    recipe = baseline(family)
    own = 2 if smoke else 6 if synthetic else recipe.epochs
    epochs = own if epochs is None else epochs
    changes: dict[str, Any] = {"epochs": epochs, "head_epochs": max(0, min(recipe.head_epochs, epochs - 1))}
    if synthetic:
        changes["batch_size"] = 16 if smoke else 32
    return recipe.changed(**changes, precision=precision)


def _parsed(changes: list[str]) -> dict[str, str]:
    """`field=value` words; pydantic turns the values into the fields' types."""
    wrong = [change for change in changes if "=" not in change]
    if wrong:
        raise UserError(f"--set {wrong[0]!r}: write it as field=value, for example --set learning_rate=1e-4")
    parsed = {key.strip(): value.strip() for key, value in (change.split("=", 1) for change in changes)}
    if "family" in parsed:
        raise UserError("--set family=…: families are chosen with --families")
    return parsed
