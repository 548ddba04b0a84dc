"""The phases of a training and its learning-rate curve."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ham_ray.recipe import Recipe


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with one set of trained variables, one optimizer and one learning-rate curve."""

    name: str
    first: int
    epochs: int
    peak: float


def phases(recipe: Recipe) -> list[Phase]:
    """List the phases of a training: the head alone first where the recipe says so, then all that it unfreezes."""
    rest = Phase("all", recipe.head_epochs, recipe.epochs - recipe.head_epochs, recipe.optimizer.learning_rate)
    return (
        [Phase("head", 0, recipe.head_epochs, recipe.optimizer.head_learning_rate), rest]
        if recipe.head_epochs
        else [rest]
    )


def phase_at(recipe: Recipe, epoch: int) -> Phase:
    """Return the phase of an epoch, counted from 0."""
    return next(phase for phase in reversed(phases(recipe)) if epoch >= phase.first)


def learning_rate(peak: float, step: int, warmup: float, total: int) -> float:
    """Return a step's learning rate: linear up to `peak` over `warmup` steps, then half a cosine to 0 at `total`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
