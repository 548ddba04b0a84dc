"""Where and with what a group of trainings is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ham_ray.cluster import Resources, WorkerRange
from ham_ray.data.images import Images
from ham_ray.models import registry
from ham_ray.models.weights import RANDOM, Weights
from ham_ray.recipe import Recipe
from ham_ray.training import activations as tables


class Limits(Protocol):
    """The options of a command that bound memory and disk, in GiB, and name the folder of all runs."""

    @property
    def shard_memory(self) -> float:
        """The most memory of decoded images in a worker."""
        ...

    @property
    def activations(self) -> float:
        """The most disk space of outputs of frozen layers."""
        ...

    @property
    def out(self) -> str:
        """The folder of all runs."""
        ...


@dataclass(frozen=True)
class TrainingContext:
    """What all families of a comparison share."""

    images: Images
    weights: dict[str, Weights]  # by architecture, of those that are pretrained
    resources: Resources
    out: str
    shard_memory: float
    activations: str  # the folder of tables that runs share
    activations_budget: float
    elastic: WorkerRange | None = None

    @property
    def data(self) -> str:
        """The data in words."""
        return f"{self.images.card['source']['file']} at {self.images.size} px"

    def weights_of(self, recipe: Recipe) -> Weights:
        """Return what a recipe's network starts from."""
        return self.weights.get(registry.architecture(recipe.family).name, RANDOM)


def make_context(
    images: Images, weights: dict[str, Weights], resources: Resources, path: str, limits: Limits
) -> TrainingContext:
    """Make the context of trainings whose folders are in `path`."""
    return TrainingContext(
        images,
        weights,
        resources,
        path,
        limits.shard_memory * 2**30,
        tables.folder(limits.out),
        limits.activations * 2**30,
    )
