"""Search a recipe's best values by Bayesian optimisation over a space: Optuna proposes trials, Ray Tune runs them.

Examples:
    python jobs/tune.py --smoke                           # synthetic; 2 minutes
    python jobs/tune.py --space space.yaml --data images/ham10000 --trials 30
    ray job submit --working-dir . -- python jobs/tune.py --space … --data … --out …

The same command goes on after an interruption; with more --trials it extends a finished search. `ham-ray fields` lists
what a space can vary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from typer import Option

from ham_ray.command_line import Job
from ham_ray.errors import UserError, shown
from ham_ray.recipe import VIEWS
from ham_ray.workflows.shared import PRECISIONS, Data, External, Precision, Size, Weights

if TYPE_CHECKING:
    from ham_ray.data.images import Images
    from ham_ray.recipe import Recipe
    from ham_ray.search.space import Space

SPACES = Path(__file__).parents[2] / "search_spaces"
SMOKE_SPACE = "smoke.yaml"


class Counts(NamedTuple):
    """How much a search does: finished trials in all, the best of them trained again, trainings of each of those."""

    trials: int
    finalists: int
    seeds: int


USUAL, SMOKE = Counts(30, 3, 3), Counts(4, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `jobs/tune.py`."""

    data: Data = None
    name: Annotated[str | None, Option(help="of the search; by default made from what it depends on")] = None
    trials: Annotated[
        int | None, Option(help=f"finished trials wanted in all; default {USUAL.trials}, smoke {SMOKE.trials}")
    ] = None
    space: Annotated[str | None, Option(help="YAML file of search_spaces, or one like them; smoke has its own")] = None
    max_concurrent: Annotated[int | None, Option(help="trials at once")] = None
    workers_per_trial: Annotated[int, Option(help="training workers of a trial; 1 is the fastest way")] = 1
    cpus_per_worker: Annotated[float | None, Option(help="of those, instead of an even share")] = None
    max_failures: Annotated[int, Option(help="restarts of a trial after its process dies")] = 2
    epochs: Annotated[int | None, Option(help="of each trial and of the finals, instead of the space's")] = None
    weights: Weights = field(default_factory=lambda: ["imagenet"])
    precision: Precision = "auto"
    shard_memory: Annotated[
        float, Option(help="GiB of decoded images a worker may keep; trials of one worker share theirs")
    ] = 4.0
    activations: Annotated[float, Option(help="GiB that outputs of frozen layers may take, each depth")] = 8.0
    size: Size = None
    storage: Annotated[
        str | None, Option(help="database URL of the study, as postgresql://host/studies; default a file in its folder")
    ] = None
    mixed: Annotated[
        bool,
        Option(help="resume a study although data, space or weights changed (values are not comparable)"),
    ] = False
    finalists: Annotated[
        int | None,
        Option(help=f"best trials trained again; default {USUAL.finalists}, smoke {SMOKE.finalists}; 0 = none"),
    ] = None
    external: External = field(default_factory=list)
    finals_data: Annotated[str | None, Option(help="IMAGES table of another size, for those")] = None
    seeds: Annotated[
        int | None,
        Option(help=f"trainings of each, over validation folds; default {USUAL.seeds}, smoke {SMOKE.seeds}"),
    ] = None
    ensemble: Annotated[int, Option(help="also average the probabilities of that many of them")] = 1
    views: Annotated[
        int, Option(help=f"symmetries of each image predicted and averaged in the finals, up to {VIEWS['light']}")
    ] = 1
    refit: Annotated[bool, Option(help="train what was chosen once more, on the validation folds too")] = False
    smoke: Annotated[bool, Option(help="four short trials on few images, to see that all works")] = False
    out: Annotated[str, Option(help="folder for runs")] = "runs"
    default_space: ClassVar[str | None] = None  # a file of search_spaces; a job that searches one of them has it

    @cached_property
    def counts(self) -> Counts:
        """Trials, finalists and seeds as they were asked for, or by default."""
        default = SMOKE if self.smoke else USUAL
        asked = (self.trials, self.finalists, self.seeds)
        return Counts(*(usual if values is None else values for values, usual in zip(asked, default, strict=True)))

    @property
    def space_file(self) -> str:
        """The space that was named, or the default one.

        Raises:
            UserError: none was named, and there is no default.
        """
        default = SMOKE_SPACE if self.smoke else self.default_space
        if self.space is None and default is None:
            raise UserError(f"--space: name a YAML file, such as one of {SPACES}; only --smoke has its own")
        return str(SPACES / str(default)) if self.space is None else self.space

    def check(self) -> None:
        """Refuse what cannot be met whatever the cluster is.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        from ham_ray.workflows import checks
        from ham_ray.workflows import weights as starts

        checks.name("--name", self.name)
        checks.choice("--precision", self.precision, PRECISIONS)
        self.check_numbers()
        self._check_storage()
        checks.out_folder("--out", self.out)
        starts.sources(self.weights, self.recipes("float32"))
        if self.name is None:
            checks.name("--space (which a search without --name is named after)", Path(self.space_file).stem)
        if table := checks.data(self.data):
            self.check_images(table)
        if self.finals_data is not None:
            checks.table("--finals-data", self.finals_data)
        for path in self.external:
            checks.data(path, "--external")

    def check_images(self, images: Images) -> None:
        """Refuse images that are too few for the space's trials."""
        from ham_ray.training.trainable import check_trainable

        base, _ = self.recipes("float32")
        batches = self.searched.parameters.get("batch_size")
        largest = base.changed(batch_size=max(map(int, batches.ends())) if batches else None)
        check_trainable(images, largest, f"trials of {self.searched.family}", self.workers_per_trial)

    @cached_property
    def searched(self) -> Space:
        """What the space file holds."""
        from ham_ray.search.space import load_space  # here: it loads Optuna

        return load_space(self.space_file)

    def recipes(self, precision: str) -> tuple[Recipe, Recipe]:
        """Make the recipe that trials change, and that of the finals."""
        base, finals = self.searched.base().changed(epochs=self.epochs, precision=precision), self.searched.finals
        return base, base.changed(**{**finals, "epochs": self.epochs or finals.get("epochs")})

    def check_numbers(self) -> None:
        """Refuse numbers that make no sense."""
        from ham_ray.workflows import checks

        trials, finalists, seeds = self.counts
        checks.whole("--trials", trials, 1)
        checks.whole("--max-concurrent", self.max_concurrent, 1, 1000)
        checks.whole("--workers-per-trial", self.workers_per_trial, 1, 1000)
        checks.number("--cpus-per-worker", self.cpus_per_worker, 0.1, 1000)
        checks.whole("--max-failures", self.max_failures, 0)
        checks.whole("--epochs", self.epochs, 1)
        checks.number("--shard-memory", self.shard_memory, 0)
        checks.number("--activations", self.activations, 0)
        checks.size("--size", self.size)
        checks.whole("--finalists", finalists, 0, remedy="; 0 trains none again")
        checks.whole("--ensemble", self.ensemble, 1)
        if finalists:
            checks.whole("--seeds", seeds, 1, 1000, remedy="; without finals: --finalists 0")
        if finalists and self.ensemble > finalists:
            raise UserError(f"--ensemble {self.ensemble}: more trials than --finalists {finalists} trains again")
        if not 1 <= self.views <= VIEWS["light"]:
            raise UserError(f"--views {self.views}: from 1 (the image as it is) to {VIEWS['light']}, its symmetries")

    def _check_storage(self) -> None:
        """Check that the database's URL can be parsed and its driver is installed; nothing is opened."""
        from sqlalchemy.exc import ArgumentError

        from ham_ray import storage
        from ham_ray.search import database

        if self.storage is None:
            if storage.is_remote(self.out):
                raise UserError(f"--out {self.out}: a study needs a database; give --storage postgresql://… as well")
            if "?" in storage.absolute(self.out):
                raise UserError(f"--out {self.out}: the URL of the study's database cannot hold '?'; choose another")
            return
        url = shown(_without_password(self.storage))
        try:
            database.with_driver(self.storage)
        except database.StudyError as error:
            raise UserError(f"--storage {url}: {error}") from None
        except (ArgumentError, ValueError) as error:
            raise UserError(
                f"--storage {url}: no database URL that can be used here: {str(error).splitlines()[0]}; such as "
                "postgresql://user@host/studies or sqlite:////shared/study.db"
            ) from None


def run(options: Options) -> None:
    """Run the search and its finals, and print the best trials and the table of the finals.

    Raises:
        UserError: an option that cannot be met, or a search that was interrupted.
    """
    options.check()
    from ham_ray.cluster import connected
    from ham_ray.report import summary
    from ham_ray.workflows.steps import tuning

    with connected():
        search = tuning.run(options)
    tuning.show(search)
    if search.summary:
        summary.show(search.summary)
    report = f"report: {search.place}/report.html; " if search.reported else ""
    print(f"{report}trials: {search.place}/trials.csv")


def _without_password(url: str) -> str:
    return re.sub(r"(//[^/:@]*):[^@]*@", r"\1:…@", url)


JOB = Job(Options, run, __doc__, "Ray and TensorFlow", "finished trials and epochs are kept; the same command goes on")
