"""The search job: from its options to a study, trials, the best of them trained again, and a page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from optuna.exceptions import OptunaError
from ray import tune
from rich import box
from rich.table import Table

from ham_ray import hardware, runs, storage
from ham_ray.cluster import Resources, alive_nodes, check_shared, check_visible, cluster_resources, shares
from ham_ray.console import for_tables
from ham_ray.data.images import Images, open_images
from ham_ray.errors import UserError
from ham_ray.models import registry
from ham_ray.models.weights import RANDOM, Weights
from ham_ray.recipe import Recipe, digest
from ham_ray.report import search_report
from ham_ray.report.summary import Run, Summary, disclaimers
from ham_ray.runs import ENVIRONMENT, FINALS, REPORT, WINNER
from ham_ray.search import tuner
from ham_ray.search.database import is_file, shown, with_driver
from ham_ray.search.distributed_trial import DistributedTrial
from ham_ray.search.ownership import Ownership, owned
from ham_ray.search.pace import Ahead, time_left
from ham_ray.search.sharing import joined
from ham_ray.search.space import Space
from ham_ray.search.study import Study, open_study
from ham_ray.search.trial import InProcessTrial, Shared, table_key
from ham_ray.training import activations, input_pipeline
from ham_ray.workflows.steps import baselines, choices, external
from ham_ray.workflows.steps.context import TrainingContext, make_context
from ham_ray.workflows.steps.finals import Plan, finals
from ham_ray.workflows.tune import Options

TRIALS, STUDY = "trials", "study.db"
_SHOWN = 5  # runs that were passed over, with their reasons
_RESULTS = "finals and report"  # the lease of the search that makes them
_WATCHER = 0.01  # CPUs of the process that waits for a trial's workers


@dataclass(frozen=True)
class Found:
    """The results of a search: TRIALS, the space they are from, the search's folder, and the table of the finals.

    `noise` is the spread of a score on one validation fold by chance, where it is known. `reported` is False where
    finals and page were left to another process that works on the study.
    """

    trials: pd.DataFrame
    space: Space
    place: str
    summary: Summary | None
    noise: float | None
    reported: bool = True


def run(options: Options) -> Found:
    """Search until the study has enough finished trials, then train the best of them again.

    Raises:
        UserError: an option that cannot be met, before any trial starts; or every trial failed for one reason; or the
            search was interrupted.
    """
    search = _prepared(options)
    print(f"search {search.name!r}: {search.place}")
    try:
        alone = is_file(search.url)
        driver = (owned if alone else joined)(search.name, search.url, search.place)
        with storage.locked(search.place, shared=not alone), driver as ownership:
            return _run(search, ownership)
    except OptunaError as error:  # another program wrote into the study; its database has errors of its own
        raise UserError(f"study {search.name!r}: {type(error).__name__}: {error}; the same command goes on") from error


def _run(search: _Search, ownership: Ownership) -> Found:
    with ownership.holding("the start"):
        runs.record_start(storage.join(search.place, ENVIRONMENT))
        study = search.study(ownership)
        if ownership.alone():
            tuner.remove_leftovers(search.place)
            tuner.forget_checkpoints(study, search.place)
    shared = None
    while study.open() and study.has_work():
        if shared is None:
            with ownership.holding("the tables of activations"):
                shared = search.shared()
        tuner.run(study, shared, search.resources, search.trainable(shared), search.time_left)
    ownership.check()
    table = study.table()
    _write(table, search.place)
    if reason := study.failing_alike():
        raise UserError(
            f"every trial failed for the same reason, the search was stopped: {reason}; once its cause is mended "
            "the same command goes on, or another --name starts afresh"
        )
    if study.open():
        message = f"{study.finished()} of {study.trials} trials finished"
        raise UserError(f"search {search.name!r} was interrupted: {message}; the same command goes on")
    if not ownership.take(_RESULTS):
        print(f"finals and report: by {ownership.holder(_RESULTS)}; this search ends here", flush=True)
        return Found(table, search.space, search.place, None, search.images.dataset.noise, reported=False)
    summary = None
    options = search.options
    if options.counts.finalists:
        best = study.best(options.counts.finalists, search.ranked())
        plan = Plan(
            options.counts.seeds,
            options.ensemble,
            options.views,
            options.refit,
            search.earlier_finals(),
            search.externals,
        )
        summary = finals(best, search.longer, plan, search.final_setting(), search.beside())
    ownership.check()
    search_report.write(search.page(study, table, summary), storage.join(search.place, REPORT))
    return Found(table, search.space, search.place, summary, search.images.dataset.noise)


def show(result: Found) -> None:
    """Print the best trials, the noise of their differences, and how many ended how."""
    table, space = result.trials, result.space
    headings, rows = search_report.best_trials(table, space.objective, [*space.parameters])
    title = f"best trials by {space.objective.replace('_', ' ')} on the validation fold"
    shown = Table(box=box.SIMPLE, title=title)
    for heading in headings:
        shown.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    for row in rows:
        shown.add_row(*row)
    for_tables().print(shown)
    counts = ", ".join(f"{count} {state}" for state, count in table["state"].value_counts().items())
    print(
        f"{len(table)} trials: {counts}"
        + (f"; differences below ±{result.noise:g} are noise of one validation fold" if result.noise else "")
    )


@dataclass(frozen=True)
class _Search:
    """A search's options with all that was chosen from them."""

    options: Options
    space: Space
    base: Recipe
    longer: Recipe  # of the finals, where `finals:` of the space may ask for more epochs
    images: Images
    final_images: Images  # of the finals: the same ones, perhaps of other size
    weights: Weights
    resources: tuner.TrialResources
    alone: Resources  # of one training of `workers_per_trial`
    externals: tuple[external.External, ...]

    @property
    def name(self) -> str:
        """The name that was given, or one made from what the search depends on."""
        return self.options.name or f"search-{Path(self.options.space_file).stem}-{digest(self.facts)}"

    @property
    def place(self) -> str:
        """The search's folder."""
        return storage.join(storage.absolute(self.options.out), self.name)

    @property
    def url(self) -> str:
        """The URL of the study's database."""
        return with_driver(self.options.storage) if self.options.storage else f"sqlite:///{self.place}/{STUDY}"

    @property
    def facts(self) -> dict[str, Any]:
        """What the value of a trial depends on, beside its parameters."""
        return {
            "images": f"{self.images.fingerprint[:12]} at {self.images.size} px",
            **{name: digest(content) for name, content in self.details.items()},
            "weights": (self.weights.sha256 or self.weights.name)[:12],
        }

    @property
    def details(self) -> dict[str, dict[str, Any]]:
        """The content of those facts that are digests."""
        return {
            "space": self.space.record(),
            "recipe": self.base.record(),
        }

    def study(self, ownership: Ownership) -> Study:
        """Open the study, or make it."""
        options = self.options
        study = open_study(
            self.name, self.url, self.space, options.counts.trials, self.facts, options.mixed, self.details, ownership
        )
        study.record_code(f"commit {runs.commit()}, sources {runs.code_digest()}")
        print(f"study {shown(self.url)}: {study.finished()} of {options.counts.trials} trials finished", flush=True)
        return study

    def time_left(self, study: Study) -> str:
        """Say how long the trials and the finals still take."""
        options, scale = self.options, (self.final_images.size / self.images.size) ** 2
        trained = options.counts.finalists + (options.ensemble if options.refit and options.counts.finalists else 0)
        ahead = Ahead(options.counts.finalists, trained * options.counts.seeds, self.longer.epochs, scale)
        return time_left(study, self.resources.concurrent, ahead)

    def shared(self) -> Shared:
        """Put what trials share into the object store and on disk."""
        rows = input_pipeline.split_rows(self.images, self.base)
        tables = {key: plan.built() for key, plan in self._planned(rows).items()}
        stored = {name: self.images.stored(rows[name]) for name in ("training", "validation")}
        kept: tuple[str, ...] = ()
        if self.options.workers_per_trial == 1 and len(tables) < len(self._combinations):  # else no trial reads images
            sizes = {name: float(one.decoded_bytes) for name, one in stored.items()}
            kept = input_pipeline.keep(sizes, self.options.shard_memory * 2**30)
        return Shared(
            base=self.base,
            size=self.images.size,
            classes=len(self.images.classes),
            weights=ray.put(self.weights),
            pixels={name: ray.put(input_pipeline.decoded(stored[name]).inputs) for name in kept},
            stored=ray.put(stored),
            labels={name: one.labels for name, one in stored.items()},
            tables=tables,
            place=self.place,
            threads=max(1, int(self.resources.cpus), hardware.cores() // self.resources.concurrent),
        )

    @property
    def _combinations(self) -> list[Recipe]:
        """The base recipe with each value of what a table of activations depends on."""
        return [self.base.changed(**values) for values in self.space.combinations("unfreeze_depth", "augmentation")]

    def _planned(self, rows: dict[str, pd.DataFrame]) -> dict[str, activations.Planned]:
        """Plan the tables of activations, by `table_key`; print the disk space they need before the first is built."""
        result: dict[str, activations.Planned] = {}
        lacking: dict[Path, int] = {}
        folder, budget = activations.folder(self.options.out), self.options.activations * 2**30
        for recipe in self._combinations:
            print(f"{table_key(recipe)}: ", end="", flush=True)
            promised = sum(lacking.values())
            if plan := activations.planned(self.images, rows, recipe, self.weights, folder, budget, promised):
                result[table_key(recipe)] = plan
                lacking |= plan.sizes(missing=True)
        if result:
            whole = {path: size for plan in result.values() for path, size in plan.sizes().items()}
            need, new = (sum(sizes.values()) / 2**30 for sizes in (whole, lacking))
            print(f"activations: {need:.2f} GiB on disk in all, {new:.2f} GiB of it to be computed now", flush=True)
        return result

    def trainable(self, shared: Shared) -> Any:
        """Choose what runs a trial: a warm process, or Ray Train where the trial has several workers."""
        if self.options.workers_per_trial == 1:
            return tune.with_parameters(InProcessTrial, shared=shared)
        workers = self.options.workers_per_trial
        together = cluster_resources(self.resources.concurrent * workers, self.options.cpus_per_worker)
        return tune.with_parameters(
            DistributedTrial,
            shared=shared,
            images=self.images,
            resources=replace(together, workers=workers),
            shard_memory=self.options.shard_memory * 2**30,
            restarts=self.options.max_failures,
        )

    @property
    def finals_folder(self) -> str:
        """The folder of the finals, below the search's: images of another size have one of their own."""
        return FINALS if self.final_images.size == self.images.size else f"{FINALS}-{self.final_images.size}"

    def final_setting(self) -> TrainingContext:
        """Make the context in which the best trials are trained again."""
        folder = storage.join(self.place, self.finals_folder)
        weights = {registry.architecture(self.base.family).name: self.weights}
        return make_context(self.final_images, weights, self.alone, folder, self.options)

    def ranked(self) -> list[int]:
        """List the trials that the finals at the search's own size trained, best first.

        Several folds say more of them than the search's one.
        """
        path = storage.join(self.place, FINALS, WINNER)
        if self.finals_folder == FINALS or not storage.exists(path):
            return []
        scores = storage.read_object(path).get("scores", {})
        result = sorted(map(int, scores), key=lambda number: -scores[str(number)])
        print(f"best trials: first those of the finals at {self.images.size} px, in their order: {result}", flush=True)
        return result

    def earlier_finals(self) -> tuple[str, ...]:
        """List the folders of other finals that named a winner: they have looked at the test fold."""
        named = [uri for uri in storage.folders(self.place) if storage.exists(storage.join(uri, WINNER))]
        result = (uri.rpartition("/")[2] for uri in named)
        return tuple(name for name in result if name != self.finals_folder)

    def beside(self) -> dict[str, Run]:
        """Read finished baselines of the images searched on, by the name they have in the finals' table."""
        result = baselines.finished(storage.absolute(self.options.out), self.images, self.base.model.precision)
        remedy = "jobs/baseline.py with the same --data and --out and its own settings makes them"
        print(f"baselines to set beside the winner: {', '.join(result.runs) or f'none; {remedy}'}", flush=True)
        for run, reason in list(result.passed_over.items())[-_SHOWN:]:
            print(f"  passed over: {run} ({reason})", flush=True)
        if len(result.passed_over) > _SHOWN:
            print(f"  passed over: {len(result.passed_over) - _SHOWN} older ones", flush=True)
        size = "" if self.finals_folder == FINALS else f" at {self.images.size} px"
        return {f"baseline {family}{size}": run for family, run in result.runs.items()}

    def page(self, study: Study, table: pd.DataFrame, summary: Summary | None) -> search_report.SearchData:
        """Collect what the search's page shows."""
        around, card = runs.environment(), self.images.card
        random = self.weights.content is None and registry.architecture(self.base.family).pretrained is not None
        return search_report.SearchData(
            name=self.name,
            disclaimers=disclaimers(card["synthetic"], random, self.images.ungrouped),
            trials=table,
            parameters=[*self.space.parameters],
            objective=self.space.objective,
            scores={number: scores for number, scores in study.scores().items() if scores},
            importances=study.importances(),
            classes=self.images.classes,
            data_set=self.images.dataset.title,
            noise=self.images.dataset.noise,
            facts={
                **{key: around[key] for key in ("command", "commit", "machine", "time")},
                "packages": ", ".join(f"{package} {version}" for package, version in around["packages"].items()),
                "data": f"{card['source']['file']} at {self.images.size} px, fingerprint {self.images.fingerprint}",
                "weights": self.weights.name,
                "licence of the data": card["licence"],
                "attribution": card["attribution"],
            },
            finals=summary,
            finals_page=f"{self.finals_folder}/{REPORT}",
            logarithmic=frozenset(n for n, result in self.space.parameters.items() if getattr(result, "log", False)),
        )


def _prepared(options: Options) -> _Search:
    options.check_numbers()
    choices.tell_temporary(options.out)
    check_shared(storage.absolute(options.out))
    alone = cluster_resources(options.workers_per_trial, options.cpus_per_worker)
    resources = _trial_resources(options)
    precision = choices.precision(options.precision, resources.gpus > 0)
    base, longer = options.recipes(precision)
    images = choices.images(options.data, options.out, options.size, options.smoke, [base])
    options.check_images(images)
    last = _final_images(options, images)
    externals = tuple(external.opened(options.external, options.out, last))
    weights = choices.weights(options.weights, [base], images).get(registry.architecture(base.family).name, RANDOM)
    return _Search(options, options.searched, base, longer, images, last, weights, resources, alone, externals)


def _final_images(options: Options, images: Images) -> Images:
    """Open the images that the best trials are trained again on.

    Raises:
        UserError: `--finals-data` holds other images than `--data`, or has them in other folds.
    """
    if options.finals_data is None:
        return images
    check_visible(storage.absolute(options.finals_data), "--finals-data")
    result = open_images(options.finals_data)
    what = ["image_id", "label", "fold"]
    if not result.rows[what].equals(images.rows[what]):
        raise UserError(
            f"--finals-data {options.finals_data}: other images, labels or folds than those searched on; make it of "
            "the same archive with jobs/ingest.py"
        )
    print(f"finals on {options.finals_data}: {result.size} px, fingerprint {result.fingerprint[:12]}")
    return result


def _trial_resources(options: Options) -> tuner.TrialResources:
    """Choose how many trials run at once and what each takes; print it with the reason.

    Raises:
        UserError: the cluster has not the CPUs for `--max-concurrent`.
    """
    nodes = alive_nodes()
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if options.workers_per_trial > 1:
        concurrent = options.max_concurrent or 1
        print(f"resources: {cluster_resources(concurrent * options.workers_per_trial, options.cpus_per_worker).reason}")
        return tuner.TrialResources(concurrent, _WATCHER, 0.0, options.max_failures)
    automatic = " (one a GPU)" if gpus else " (one for each 4 CPUs of a node, at least 1)"
    reason = "" if options.max_concurrent else automatic
    concurrent = options.max_concurrent or gpus or _trials_at_once([node.cpus for node in nodes])
    share, gpu_share = shares(concurrent)
    if share < min(1.0, cpus):
        raise UserError(f"--max-concurrent {concurrent}: more than the cluster has CPUs for ({cpus:g} in all)")
    where = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    print(f"trials at once: {concurrent}{reason}, {share:g} of {cpus:g} CPUs each{where}")
    return tuner.TrialResources(concurrent, share, gpu_share, options.max_failures)


def _trials_at_once(node_cpus: list[float]) -> int:
    """Count one trial for each four CPUs of a node and at least one a node, so that each has something to do."""
    return max(1, sum(max(1, int(cpus // 4)) for cpus in node_cpus if cpus >= 1))


def _write(table: pd.DataFrame, target: str) -> None:
    with storage.writing(storage.join(target, f"{TRIALS}.parquet")) as path:
        table.to_parquet(path, index=False)
    storage.write_bytes(storage.join(target, f"{TRIALS}.csv"), table.to_csv(index=False).encode())
