"""The baseline job: from its options to data, recipes, weights and resources, each automatic choice with its reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ham_ray import runs, storage
from ham_ray.cluster import Resources, check_shared, cluster_resources
from ham_ray.data.images import Images
from ham_ray.data.terms import FOLDS
from ham_ray.errors import UserError
from ham_ray.recipe import BASELINES, digest
from ham_ray.report.summary import Run, Summary
from ham_ray.runs import ENVIRONMENT, REPORT
from ham_ray.training.elastic import wait_for_nodes
from ham_ray.workflows.baseline import Options, make_recipes, recipe_of
from ham_ray.workflows.steps import choices, external
from ham_ray.workflows.steps.comparison import compare, cross_validate
from ham_ray.workflows.steps.context import make_context
from ham_ray.workflows.steps.trainings import read_run


def run(options: Options) -> tuple[Summary, str]:
    """Choose, print every choice, and compare; return the summary and the path of the report.

    Raises:
        UserError: an option that cannot be met; before anything is trained.
    """
    choices.tell_temporary(options.out)
    resources, at_once = _resources(options)
    print(f"resources: {resources.reason}", flush=True)
    check_shared(storage.absolute(options.out))
    precision = choices.precision(options.precision, resources.use_gpu)
    recipes = make_recipes(options, precision)
    images = choices.images(options.data, options.out, options.size, options.smoke, list(recipes.values()))
    options.check_images(images)
    externals = external.opened(options.external, options.out, images)
    weights = choices.weights(options.weights, list(recipes.values()), images)
    starts = [one.sha256 for one in weights.values()]
    parts = [[recipe.record() for recipe in recipes.values()], images.fingerprint, *(starts or [None])]
    kind = "crossed" if options.cross_validate else "baseline"
    name = options.name or f"{kind}-{digest(*parts)}"
    path = storage.join(storage.absolute(options.out), name)
    context = make_context(images, weights, resources, path, options)
    context = replace(context, elastic=options.worker_range if options.worker_range.elastic else None)
    with storage.locked(path):
        if options.cross_validate:
            result = cross_validate(recipes, context, at_once, externals)
        else:
            result = compare(recipes, context, externals)
        return result, storage.join(path, REPORT)


def _resources(options: Options) -> tuple[Resources, int]:
    """Choose the resources of each training, and how many run at once: those of a cross-validation, where they fit."""
    allowed = options.worker_range
    if allowed.elastic:
        start = wait_for_nodes(allowed, batch_size=1)
        return replace(start, reason=f"elastic, {options.workers} workers, one a node or GPU: now {start.reason}"), 1
    alone = cluster_resources(allowed.most, options.cpus_per_worker, options.wait_for_nodes)
    together = FOLDS * len(options.family_names) if options.cross_validate else 1
    for at_once in range(together, 1, -1):
        try:
            result = cluster_resources(allowed.most * at_once, options.cpus_per_worker, options.wait_for_nodes)
        except UserError:
            continue
        if result.cpus_per_worker >= 1 and result.use_gpu == alone.use_gpu:
            reason = f"{at_once} trainings at once; together {result.reason}"
            return replace(result, workers=allowed.most, reason=reason), at_once
    return alone, 1


@dataclass(frozen=True)
class Finished:
    """Baselines to set beside a search's winner: the latest finished run by family, and why others are left out."""

    runs: dict[str, Run]
    passed_over: dict[str, str]  # the reason by run folder, below `out`


def finished(out: str, images: Images, precision: str) -> Finished:
    """Read the latest finished run of each baseline below `out`: of these images, by this job's own recipe."""
    own = {name: recipe_of(name, precision, images.card["synthetic"]).record() for name in BASELINES}
    recorded = {uri: _recorded(uri) for group in storage.folders(out) for uri in storage.folders(group)}
    result: dict[str, Run] = {}
    passed_over: dict[str, str] = {}
    for uri in sorted(recorded, key=lambda uri: runs.last_start(storage.join(uri, ENVIRONMENT))):
        if not recorded[uri]:
            continue
        reason, run = _unlike(recorded[uri], own, images), None
        if not reason and (run := read_run(uri)) is None:
            reason = "not finished"
        if run is None:
            passed_over[uri.removeprefix(out).strip("/")] = reason
        else:
            result[recorded[uri]["recipe"]["family"]] = run
    return Finished(result, passed_over)


def _unlike(identity: dict[str, Any], own: dict[str, dict[str, Any]], images: Images) -> str:
    """Say how a run differs from a baseline's on these images; empty where it does not."""
    data, family = identity.get("data", {}), identity["recipe"]["family"]
    if (data.get("fingerprint"), data.get("size")) != (images.fingerprint, images.size):
        return f"other images: fingerprint {str(data.get('fingerprint'))[:12]} at {data.get('size')} px"
    if family not in own:
        return f"{family} is no baseline"
    fields = runs.differences(identity["recipe"], own[family])
    return ", ".join(f"{name} {there!r}, a baseline has {here!r}" for name, there, here in fields)


def _recorded(uri: str) -> dict[str, Any]:
    """Read the identity of the run in a folder; empty where it holds none."""
    return storage.read_object(storage.join(uri, runs.IDENTITY))
