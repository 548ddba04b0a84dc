"""Train the baselines and compare them with trivial baselines and the original study: a table, a page, a folder a run.

Examples:
    python jobs/baseline.py                       # synthetic; 2 minutes
    python jobs/baseline.py --smoke               # the same, smaller; 1 minute
    python jobs/baseline.py --data ham10000.zip   # about an hour on two cores
    ray job submit --working-dir . -- python jobs/baseline.py --data s3://… --out s3://…

Started again with the same options after an interruption, it goes on where it was. `ham-ray fields` lists what --set
can change.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ham_ray.cluster import WorkerRange, worker_range
from ham_ray.command_line import Job
from ham_ray.errors import UserError
from ham_ray.models import registry
from ham_ray.recipe import BASELINES, FIELDS, Recipe, baseline, shortest_name
from ham_ray.workflows.shared import PRECISIONS, Data, External, Precision, Size, Weights

if TYPE_CHECKING:
    from ham_ray.data.images import Images


def _families(incomplete: str) -> list[str]:
    """Complete the last of the families that are typed so far."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in BASELINES if name.startswith(last) and name not in before.split(",")]


def _named() -> str:
    """Write all families briefly: those of a network behind its name."""
    kinds: dict[str, list[str]] = {}
    for name, one in registry.architectures().items():
        ends = [recipe.removeprefix(name) for recipe in one.recipes]
        kinds.setdefault(" or ".join(filter(None, ends)), []).append(name)
    return "; ".join(f"{', '.join(names)}{f' with {ends}' if ends else ''}" for ends, names in kinds.items())


def _fields(incomplete: str) -> list[str]:
    """Complete the name of a recipe's field."""
    return [f"{name}=" for name in FIELDS if name.startswith(incomplete)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `jobs/baseline.py`."""

    data: Data = None
    families: Annotated[str, Option(help=f"comma-separated, of {_named()}", autocompletion=_families)] = (
        "simple_cnn, resnet50_frozen, resnet50_finetuned"
    )
    external: External = field(default_factory=list)
    weights: Weights = field(default_factory=lambda: ["imagenet"])
    epochs: Annotated[int | None, Option(help="for every family, instead of its own")] = None
    workers: Annotated[str, Option(help="training workers; 1-4: as many as there are nodes for, at any time")] = "1"
    cpus_per_worker: Annotated[float | None, Option(help="instead of an even share")] = None
    wait_for_nodes: Annotated[bool, Option(help="wait for the autoscaler where work does not fit yet")] = False
    precision: Precision = "auto"
    changes: Annotated[
        list[str],
        Option("--set", help="recipe field=value, for every family; repeatable", autocompletion=_fields),
    ] = field(default_factory=list)
    cross_validate: Annotated[
        bool, Option("--cross-validate", help="each fold as test fold once: five trainings a family, pooled")
    ] = False
    shard_memory: Annotated[float, Option(help="GiB of decoded images a worker may keep")] = 4.0
    activations: Annotated[float, Option(help="GiB that outputs of frozen layers may take on disk; 0 = none")] = 8.0
    size: Size = None
    name: Annotated[str | None, Option(help="of the run; by default made from its settings")] = None
    smoke: Annotated[bool, Option(help="two epochs, and fewer images of the sample, to see that all works")] = False
    out: Annotated[str, Option(help="folder or URI for runs")] = "runs"

    @property
    def family_names(self) -> list[str]:
        """The families to train.

        Raises:
            UserError: none is named.
        """
        names = [family.strip() for family in self.families.split(",") if family.strip()]
        if not names:
            raise UserError(f"--families: name at least one of {', '.join(BASELINES)}")
        return names

    @property
    def worker_range(self) -> WorkerRange:
        """The numbers of workers that a training may have.

        Raises:
            UserError: `--workers` is neither a number nor two.
        """
        return worker_range(self.workers, self.cpus_per_worker)

    def check(self) -> None:
        """Refuse what cannot be met whatever the cluster is.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        from ham_ray.workflows import checks
        from ham_ray.workflows import weights as starts

        checks.name("--name", self.name)
        checks.choice("--precision", self.precision, PRECISIONS)
        checks.whole("--epochs", self.epochs, 1)
        if self.worker_range.elastic and self.cross_validate:
            raise UserError(
                f"--workers {self.workers} with --cross-validate: give one number, its trainings run at once"
            )
        checks.number("--cpus-per-worker", self.cpus_per_worker, 0.1, 1000)
        checks.number("--shard-memory", self.shard_memory, 0)
        checks.number("--activations", self.activations, 0)
        checks.size("--size", self.size)
        starts.sources(self.weights, make_recipes(self, "float32").values())
        checks.out_folder("--out", self.out)
        if table := checks.data(self.data):
            self.check_images(table)
        for path in self.external:
            checks.data(path, "--external")

    def check_images(self, images: Images) -> None:
        """Refuse images that are too few for one of the trainings."""
        from ham_ray.training.trainable import check_trainable

        allowed = self.worker_range
        for name, recipe in make_recipes(self, "float32").items():
            workers = next(iter(allowed.counts(recipe.data.batch_size)), allowed.most)
            if not self.cross_validate:
                check_trainable(images, recipe, name, workers)
                continue
            for split in recipe.crossed():
                check_trainable(images, split, f"{name} with test fold {split.data.test_fold}", workers, False)


def run(options: Options) -> None:
    """Train on lesion-grouped folds, and print the table; exit with 1 where a training failed.

    Raises:
        UserError: an option that cannot be met.
    """
    options.check()
    from ham_ray.cluster import connected
    from ham_ray.report import summary
    from ham_ray.workflows.steps import baselines

    with connected():
        result, page = baselines.run(options)
    summary.show(result)
    print(f"report: {page}")
    if any(row.kind == "model" and not row.metrics for row in result.rows):
        sys.exit(1)


def make_recipes(options: Options, precision: str) -> dict[str, Recipe]:
    """Make the recipe of each family named in the options.

    Raises:
        UserError: an unknown family or field, or a value out of range.
    """
    names, synthetic = options.family_names, options.data is None
    recipes = {name: recipe_of(name, precision, synthetic, options.smoke, options.epochs) for name in names}
    changes = _parsed(options.changes)
    return {name: _changed(name, recipe, changes, recipes) for name, recipe in recipes.items()}


def recipe_of(family: str, precision: str, synthetic: bool, smoke: bool = False, epochs: int | None = None) -> Recipe:
    """Make the job's recipe for a family: smaller on the synthetic sample, and for `smoke`."""
    recipe = baseline(family)
    own = 2 if smoke else 6 if synthetic else recipe.epochs
    epochs = own if epochs is None else epochs
    changes: dict[str, Any] = {"epochs": epochs, "head_epochs": max(0, min(recipe.head_epochs, epochs - 1))}
    if synthetic:
        changes["batch_size"] = 16 if smoke else 32
    return recipe.changed(**changes, precision=precision)


def _changed(name: str, recipe: Recipe, changes: dict[str, str], recipes: dict[str, Recipe]) -> Recipe:
    """Change the family's recipe by `--set`; where that does not fit it, name the families that it fits."""
    try:
        return recipe.changed(**changes)
    except UserError as error:
        fitting = [other for other, one in recipes.items() if _fits(one, changes)]
        remedy = f"; it goes to every family, of these it fits --families {','.join(fitting)}" if fitting else ""
        culprit = f"{name}: " if len(recipes) > 1 and fitting else ""
        raise UserError(f"--set: {culprit}{error}{remedy}") from None


def _fits(recipe: Recipe, changes: dict[str, str]) -> bool:
    try:
        recipe.changed(**changes)
    except UserError:
        return False
    return True


def _parsed(changes: list[str]) -> dict[str, str]:
    """Parse `field=value` words; pydantic turns the values into the fields' types."""
    wrong = [change for change in changes if "=" not in change]
    if wrong:
        raise UserError(f"--set {wrong[0]!r}: write it as field=value, for example --set learning_rate=1e-4")
    parsed: dict[str, str] = {}
    for name, value in (map(str.strip, change.split("=", 1)) for change in changes):
        try:
            name = shortest_name(name)
        except UserError as error:
            raise UserError(f"--set: {error}") from None
        if parsed.setdefault(name, value) != value:
            raise UserError(f"--set {name}: given as {parsed[name]} and as {value}; leave one of them out")
    if "family" in parsed:
        raise UserError("--set family=…: families are chosen with --families")
    return parsed


JOB = Job(
    Options, run, __doc__, "Ray and TensorFlow", "finished trainings and epochs are kept; the same command goes on"
)
