"""Whether a training could work on the images of a table, by their counts alone: before anything is computed."""

from __future__ import annotations

import itertools

import pandas as pd

from ham_ray.data.images import Images
from ham_ray.data.terms import FOLDS
from ham_ray.errors import UserError
from ham_ray.models import registry
from ham_ray.recipe import Recipe


def check_trainable(images: Images, recipe: Recipe, name: str, workers: int, other_folds: bool = True) -> None:
    """Refuse a training by the recipe of this name for which there are too few images, or images of the wrong size.

    Where it may train on `other_folds`, those are named on which nothing is missing.

    Raises:
        UserError: fewer than two classes, an empty fold that validates or tests, a class that is never learned from, or
            a batch that the training images do not fill; with the counts and the remedy. Or a network that takes no
            images of their size.
    """
    if fault := registry.architecture(recipe.family).size_fault(images.size):
        raise UserError(fault)
    counts = pd.crosstab(images.rows["dx"], images.rows["fold"]).reindex(columns=range(FOLDS), fill_value=0)
    counts = counts[counts.sum(axis=1) > 0]  # images of fold -1, of official validation and test sets, do not count
    if len(counts) < 2:
        total = int(counts.to_numpy().sum())
        classes = f"all {total:,} images in its folds are {counts.index[0]}" if total else "no image is in a fold"
        raise UserError(f"{images.uri} cannot be trained on: {classes}; add images of other diagnoses")
    if problem := _problem(counts, recipe):
        folds = _folds(counts, recipe) if other_folds else None
        remedy = folds or "add images of more lesions, or leave out what is too rare"
        raise UserError(f"{images.uri} cannot be trained on by {name}: {problem}; {remedy}")
    check_batch(int(counts[recipe.training_folds].to_numpy().sum()), recipe.data.batch_size, workers)


def check_batch(rows: int, batch_size: int, workers: int) -> None:
    """Refuse a batch that does not divide over the workers or is larger than the training set.

    Raises:
        UserError: with the arithmetic.
    """
    if batch_size % workers:
        near = max(workers, batch_size // workers * workers)
        raise UserError(f"batch_size {batch_size} does not divide over {workers} workers; for example {near} does")
    if rows < batch_size:
        raise UserError(
            f"batch_size {batch_size} is more than the {rows} training images; at most {rows // workers * workers}"
        )


def _problem(counts: pd.DataFrame, recipe: Recipe) -> str | None:
    """Say what is missing on the recipe's folds, None where nothing is; `counts` are of images, by dx and fold."""
    for what, fold in (("test", recipe.data.test_fold), ("validation", recipe.data.validation_fold)):
        if fold is not None and not counts[fold].sum():
            each = ", ".join(f"{one}: {count:,}" for one, count in counts.sum().items())
            return f"its {what} fold {fold} is empty (images by fold: {each})"
    learned = counts[recipe.training_folds].sum(axis=1)
    if missing := [dx for dx in counts.index if not learned[dx]]:
        where = "; ".join(_where(dx, counts) for dx in missing)
        return f"no training image of {', '.join(missing)} ({where})"
    return None


def _where(dx: str, counts: pd.DataFrame) -> str:
    return ", ".join(f"{count:,} {dx} in fold {fold}" for fold, count in counts.loc[dx].items() if count)


def _folds(counts: pd.DataFrame, recipe: Recipe) -> str | None:
    """Name other folds on which nothing is missing; None where there are none."""
    for test, validation in itertools.permutations(range(FOLDS), 2):
        chosen = recipe.changed(test_fold=test, validation_fold=validation)
        if recipe.data.validation_fold is not None and not _problem(counts, chosen):
            return f"with test_fold={test} and validation_fold={validation} none is missing"
    return None
