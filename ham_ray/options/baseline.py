"""Options of the baseline job, and the recipes that follow from them: checked before Ray and TensorFlow start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ham_ray.data.images import Images
from ham_ray.data.trainable import check_trainable
from ham_ray.errors import UserError
from ham_ray.options import checks
from ham_ray.options import weights as starts
from ham_ray.recipe import BASELINES, Recipe, baseline, shortest_name


@dataclass(frozen=True)
class Options:
    """The command line of `jobs/baseline.py`."""

    data: str | None
    families: list[str]
    weights: list[str]
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

    def check(self) -> None:
        """Refuse what cannot be met whatever the cluster is.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        checks.name("--name", self.name)
        checks.choice("--precision", self.precision, checks.PRECISIONS)
        checks.whole("--epochs", self.epochs, 1)
        checks.whole("--workers", self.workers, 1, 1000)
        checks.number("--cpus-per-worker", self.cpus_per_worker, 0.1, 1000)
        checks.number("--shard-memory", self.shard_memory, 0)
        checks.number("--activations", self.activations, 0)
        checks.size("--size", self.size)
        starts.sources(self.weights, make_recipes(self, "float32").values())
        checks.out_folder("--out", self.out)
        if table := checks.data(self.data):
            self.check_images(table)

    def check_images(self, images: Images) -> None:
        """Refuse images that are too few for one of the trainings."""
        for name, recipe in make_recipes(self, "float32").items():
            if not self.cross_validate:
                check_trainable(images, recipe, name, self.workers)
                continue
            for split in recipe.crossed():
                check_trainable(images, split, f"{name} with test fold {split.data.test_fold}", self.workers, False)


def make_recipes(options: Options, precision: str) -> dict[str, Recipe]:
    """The recipe of each family named in the options.

    Raises:
        UserError: an unknown family or field, or a value out of range.
    """
    names = [family.strip() for family in options.families if family.strip()]
    if not names:
        raise UserError(f"--families: name at least one of {', '.join(BASELINES)}")
    synthetic = options.data is None
    recipes = {name: recipe_of(name, precision, synthetic, options.smoke, options.epochs) for name in names}
    changes = _parsed(options.changes)
    return {name: _changed(name, recipe, changes, recipes) for name, recipe in recipes.items()}


def recipe_of(family: str, precision: str, synthetic: bool, smoke: bool = False, epochs: int | None = None) -> Recipe:
    """What the job takes for a family: smaller on the synthetic sample, and for `smoke`."""
    recipe = baseline(family)
    own = 2 if smoke else 6 if synthetic else recipe.epochs
    epochs = own if epochs is None else epochs
    changes: dict[str, Any] = {"epochs": epochs, "head_epochs": max(0, min(recipe.head_epochs, epochs - 1))}
    if synthetic:
        changes["batch_size"] = 16 if smoke else 32
    return recipe.changed(**changes, precision=precision)


def _changed(name: str, recipe: Recipe, changes: dict[str, str], recipes: dict[str, Recipe]) -> Recipe:
    """The family's recipe with what `--set` says; where that does not fit it, the families that it fits are named."""
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
    """`field=value` words; pydantic turns the values into the fields' types."""
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
