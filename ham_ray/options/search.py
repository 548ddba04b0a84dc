"""Options of the search job, checked before Ray and TensorFlow start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from ham_ray import storage
from ham_ray.data.images import Images
from ham_ray.data.trainable import check_trainable
from ham_ray.errors import UserError, shown
from ham_ray.options import checks
from ham_ray.options import weights as starts
from ham_ray.recipe import VIEWS, Recipe
from ham_ray.search.space import Space, load_space

SPACES = Path(__file__).parents[2] / "search_spaces"


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
    weights: list[str]
    precision: str
    shard_memory: float
    activations: float
    size: int | None
    storage: str | None
    mixed: bool
    finalists: int
    finals_data: str | None
    seeds: int
    ensemble: int
    views: int
    refit: bool
    smoke: bool
    out: str

    @property
    def space_file(self) -> str:
        """The space that was named, or the default one."""
        return str(SPACES / ("smoke.yaml" if self.smoke else "resnet50.yaml")) if self.space is None else self.space

    def check(self) -> None:
        """Refuse what cannot be met whatever the cluster is.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        checks.name("--name", self.name)
        checks.choice("--precision", self.precision, checks.PRECISIONS)
        self.check_numbers()
        self._check_storage()
        checks.out_folder("--out", self.out)
        starts.sources(self.weights, self.recipes("float32"))
        if self.name is None:
            checks.name("--space (which a search without --name is called by)", Path(self.space_file).stem)
        if table := checks.data(self.data):
            self.check_images(table)
        if self.finals_data is not None:
            checks.table("--finals-data", self.finals_data)

    def check_images(self, images: Images) -> None:
        """Refuse images that are too few for the space's trials."""
        base, _ = self.recipes("float32")
        batches = self.searched.parameters.get("batch_size")
        largest = base.changed(batch_size=max(map(int, batches.ends())) if batches else None)
        check_trainable(images, largest, f"trials of {self.searched.family}", self.workers_per_trial)

    @cached_property
    def searched(self) -> Space:
        """What the space file holds."""
        return load_space(self.space_file)

    def recipes(self, precision: str) -> tuple[Recipe, Recipe]:
        """What trials and finals have in common with the space."""
        base, finals = self.searched.base().changed(epochs=self.epochs, precision=precision), self.searched.finals
        return base, base.changed(**{**finals, "epochs": self.epochs or finals.get("epochs")})

    def check_numbers(self) -> None:
        """Refuse numbers that make no sense."""
        checks.whole("--trials", self.trials, 1)
        checks.whole("--max-concurrent", self.max_concurrent, 1, 1000)
        checks.whole("--workers-per-trial", self.workers_per_trial, 1, 1000)
        checks.number("--cpus-per-worker", self.cpus_per_worker, 0.1, 1000)
        checks.whole("--max-failures", self.max_failures, 0)
        checks.whole("--epochs", self.epochs, 1)
        checks.number("--shard-memory", self.shard_memory, 0)
        checks.number("--activations", self.activations, 0)
        checks.size("--size", self.size)
        checks.whole("--finalists", self.finalists, 0, remedy="; 0 trains none again")
        checks.whole("--ensemble", self.ensemble, 1)
        if self.finalists:
            checks.whole("--seeds", self.seeds, 1, 1000, remedy="; without finals: --finalists 0")
        if self.finalists and self.ensemble > self.finalists:
            raise UserError(f"--ensemble {self.ensemble}: more trials than --finalists {self.finalists} trains again")
        if not 1 <= self.views <= VIEWS["light"]:
            raise UserError(f"--views {self.views}: from 1 (the image as it is) to {VIEWS['light']}, its symmetries")

    def _check_storage(self) -> None:
        """The study's database: that its URL can be understood and its driver is installed; nothing is opened."""
        if self.storage is None:
            if storage.is_remote(self.out):
                raise UserError(f"--out {self.out}: a study needs a database; give --storage postgresql://… as well")
            if "?" in storage.absolute(self.out):
                raise UserError(f"--out {self.out}: the URL of the study's database cannot hold '?'; choose another")
            return
        try:
            make_url(self.storage).get_dialect().import_dbapi()
        except (ArgumentError, ImportError, ValueError) as error:
            reason = str(error).splitlines()[0]
            url = shown(_without_password(self.storage))
            raise UserError(
                f"--storage {url}: no database URL that can be used here: {reason}; such as "
                "postgresql://user@host/studies or sqlite:////shared/study.db"
            ) from None


def _without_password(url: str) -> str:
    return re.sub(r"(//[^/:@]*):[^@]*@", r"\1:…@", url)
