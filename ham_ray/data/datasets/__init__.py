"""The data sets that are known, one file each: what a layout, a data card or a list of classes belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from ham_ray.data.classes import Classes, Diagnosis
from ham_ray.data.dataset import Challenge, Dataset, Layout
from ham_ray.data.terms import DATASETS as _MODULES

DATASETS: dict[str, Dataset] = {name: import_module(f"{__name__}.{name}").DATASET for name in _MODULES}
DEFAULT = next(iter(DATASETS.values()))  # of tables from before data cards named theirs, and of the built-in sample
ANY = DATASETS["folder"]  # of whatever classes
LAYOUTS: dict[str, tuple[Dataset, Layout]] = {
    name: (dataset, layout) for dataset in DATASETS.values() for name, layout in dataset.layouts.items()
}
NEAR_DUPLICATES = tuple(pair for dataset in DATASETS.values() for pair in dataset.near_duplicates)
UNPUBLISHED = frozenset(image_id for dataset in DATASETS.values() for image_id in dataset.unpublished)


def of_card(card: Mapping[str, Any]) -> Dataset:
    """Return the data set that a data card names; `ANY` for an unknown one."""
    return DATASETS.get(card.get("dataset", DEFAULT.name), ANY)


def of_classes(classes: Classes) -> Dataset | None:
    """Return the data set that has just these classes; None: no known one."""
    return next((dataset for dataset in DATASETS.values() if dataset.classes == classes), None)


def of_images(image_ids: Iterable[str]) -> Dataset | None:
    """Return the data set that all these images are of, by their ids; None: no known one."""
    image_ids = [*image_ids]
    return next((dataset for dataset in DATASETS.values() if dataset.contains(image_ids)), None)


def challenges() -> list[Challenge]:
    """List the challenges, those of most classes first."""
    known = [dataset.challenge for dataset in DATASETS.values() if dataset.challenge]
    return sorted(known, key=lambda challenge: -len(challenge.columns))


def classes_of(codes: Sequence[str]) -> Classes:
    """Return the classes of these codes: a known data set's in its order, else these with what is known of each."""
    return _classes_of(tuple(codes))


@cache
def _classes_of(codes: tuple[str, ...]) -> Classes:
    known = [dataset.classes for dataset in DATASETS.values() if dataset.classes]
    for classes in known:
        if {*classes.codes} == {*codes}:
            return classes
    diagnoses = tuple(_diagnosis(dx, known) for dx in codes)
    focus = [dx for dx in codes if known[0].code_of(dx) == known[0].focus]
    return Classes(diagnoses, focus[0] if len(focus) == 1 else None)


def _diagnosis(dx: str, known: Iterable[Classes]) -> Diagnosis:
    """Return what the data sets know of a class, by its code or a name of it."""
    for classes in known:
        if own := classes.code_of(dx):
            return classes.diagnoses[classes.labels[own]]._replace(dx=dx, other_names="")
    return Diagnosis(dx, dx.replace("_", " "))
