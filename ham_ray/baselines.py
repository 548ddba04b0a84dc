"""The baseline job's choices, from options to data, recipes, weights and resources; automatic ones with reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ham_ray import runs, storage
from ham_ray.cluster import check_shared, cluster_resources, in_submitted_job
from ham_ray.comparison import REPORT, Setting, compare
from ham_ray.console import progress
from ham_ray.data.images import Images
from ham_ray.data.prepare import prepare, prepare_sample
from ham_ray.errors import UserError
from ham_ray.evaluation.summary import Summary
from ham_ray.models.families import build, pretrained
from ham_ray.models.weights import RANDOM, Weights, resolve_weights
from ham_ray.recipe import Recipe, baseline, digest


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
    shard_memory: float
    size: int | None
    name: str | None
    smoke: bool
    out: str


def run(options: Options) -> tuple[Summary, str]:
    """Choose, print every choice, compare. Returns the summary and the place of the report.

    Raises:
        UserError: an option that cannot be met; before anything is trained.
    """
    if in_submitted_job() and storage.absolute(options.out) != options.out:
        print(
            f"out: {options.out!r} is a folder of this job's temporary copy; give a URI or an absolute path to keep it"
        )
    resources = cluster_resources(options.workers, options.cpus_per_worker, options.wait_for_nodes)
    print(f"resources: {resources.reason}", flush=True)
    check_shared(storage.absolute(options.out))
    precision = _precision(options.precision, resources.use_gpu)
    recipes = make_recipes(options, precision)
    images = _images(options)
    source, fingerprint = images.card["source"]["file"], images.fingerprint[:12]
    print(f"images: {len(images.rows):,} of {source}, {images.size} px, fingerprint {fingerprint}")
    weights = _weights(options, recipes, images)
    parts = [[recipe.model_dump() for recipe in recipes.values()], images.fingerprint, weights.sha256]
    name = options.name or f"baseline-{digest(*parts)}"
    place = storage.join(storage.absolute(options.out), name)
    setting = Setting(images, weights, resources, place, options.shard_memory * 2**30)
    return compare(recipes, setting), storage.join(place, REPORT)


def make_recipes(options: Options, precision: str) -> dict[str, Recipe]:
    """The recipe of each family named in the options.

    Raises:
        UserError: an unknown family or field, or a value out of range.
    """
    names = [family.strip() for family in options.families if family.strip()]
    if not names:
        raise UserError("--families: name at least one, for example simple_cnn,resnet50_finetuned")
    return {name: _recipe(name, precision, options) for name in names}


def _images(options: Options) -> Images:
    out = storage.absolute(options.out)
    if options.data is None:
        print("images: no --data, taking the built-in synthetic sample", flush=True)
        return prepare_sample(out, options.size or (32 if options.smoke else 64))
    with progress("ingest") as told:
        return prepare(options.data, out, options.size or 128, told)


def _weights(options: Options, recipes: dict[str, Recipe], images: Images) -> Weights:
    wanting = [recipe for recipe in recipes.values() if pretrained(recipe.family)]
    if not wanting:
        return RANDOM
    try:
        weights = resolve_weights(options.weights)
    except UserError as error:
        if options.weights != "imagenet" or not images.card["synthetic"]:
            raise
        print(f"weights: RANDOM, which only the synthetic sample may fall back to: {error}")
        return RANDOM
    build(wanting[0], images.size, weights)  # refuses a file that does not fit, before anything is trained
    print(f"weights: {weights.name}" + (f", sha256 {weights.sha256[:12]}" if weights.sha256 else ""), flush=True)
    return weights


def _recipe(family: str, precision: str, options: Options) -> Recipe:
    recipe = baseline(family)
    small: dict[str, Any] = {}
    if options.smoke:
        small = {"epochs": 2}
    elif options.data is None:
        small = {"epochs": 6}
    if options.data is None:
        small["batch_size"] = 16 if options.smoke else 32
    epochs = small.get("epochs", recipe.epochs) if options.epochs is None else options.epochs
    changes = {**small, "epochs": epochs, "head_epochs": max(0, min(recipe.head_epochs, epochs - 1))}
    return recipe.changed(**{**changes, "precision": precision, **_parsed(options.changes)})


def _precision(asked: str, use_gpu: bool) -> str:
    if asked != "auto":
        return asked
    if use_gpu:
        print("precision: float32, because GPUs before Ampere lack bfloat16; later ones want --precision bfloat16")
        return "float32"
    chosen, reason = ("bfloat16", "has") if runs.has_bfloat16() else ("float32", "does not have")
    print(f"precision: {chosen}, because this processor {reason} bfloat16 instructions (weights stay float32)")
    return chosen


def _parsed(changes: list[str]) -> dict[str, str]:
    """`field=value` words; pydantic turns the values into the fields' types."""
    wrong = [change for change in changes if "=" not in change]
    if wrong:
        raise UserError(f"--set {wrong[0]!r}: write it as field=value, for example --set learning_rate=1e-4")
    parsed = {key.strip(): value.strip() for key, value in (change.split("=", 1) for change in changes)}
    if "family" in parsed:
        raise UserError("--set family=…: families are chosen with --families")
    return parsed
