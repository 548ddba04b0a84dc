"""Folds that can be believed: all images of a lesion, and of lesions that are one in truth, are in the same fold."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence

import numpy as np

from ham_ray.data.images import FOLDS

# Pairs of images under different lesion ids that show the same lesion. Source: `newly_discovered_duplicates.csv` of
# Abhishek, Jain, Hamarneh, "Investigating the quality of DermaMNIST and Fitzpatrick17k", Scientific Data 12:196 (2025).
NEAR_DUPLICATES = tuple(
    (f"ISIC_{first}", f"ISIC_{second}")
    for first, second in (
        ("0033481", "0033421"),
        ("0033556", "0032634"),
        ("0029152", "0033173"),
        ("0029036", "0027027"),
        ("0027820", "0028209"),
        ("0027689", "0032647"),
        ("0030906", "0024879"),
        ("0033391", "0034186"),
        ("0025226", "0030074"),
        ("0026087", "0025664"),
        ("0024736", "0029748"),
        ("0024770", "0027811"),
        ("0027162", "0029061"),
        ("0024602", "0032283"),
        ("0029625", "0024629"),
        ("0030000", "0031392"),
        ("0024437", "0031299"),
        ("0033374", "0033417"),
    )
)


def group_ids(image_ids: Sequence[str], lesion_ids: Sequence[str | None], pixel_hashes: Sequence[str]) -> list[str]:
    """The group of each image: its lesion, merged with every lesion it shares pixels or a known near-duplicate with.

    A group is named by the smallest of its lesion ids (of the image's own id where no lesion is known). All three
    arguments have one entry an image; the order of rows does not matter.
    """
    names = [lesion or image for image, lesion in zip(image_ids, lesion_ids, strict=True)]
    parents = {name: name for name in names}

    def root(name: str) -> str:
        while parents[name] != name:
            parents[name] = name = parents[parents[name]]
        return name

    def merge(first: str, second: str) -> None:
        low, high = sorted((root(first), root(second)))
        parents[high] = low

    first_with: dict[Hashable, str] = {}
    for name, pixels in zip(names, pixel_hashes, strict=True):
        merge(first_with.setdefault(pixels, name), name)
    lesion_of = dict(zip(image_ids, names, strict=True))
    for first, second in NEAR_DUPLICATES:
        if first in lesion_of and second in lesion_of:
            merge(lesion_of[first], lesion_of[second])
    return [root(name) for name in names]


def assign_folds(
    image_ids: Sequence[str], groups: Sequence[str], labels: Sequence[int], partitions: Sequence[str]
) -> np.ndarray:
    """The fold of each image, int32[N]: 0–4, groups whole, classes in equal shares; -1 outside the training partition.

    The same on every machine and for every order of rows: they are sorted by image_id before they are dealt out.
    """
    folds = np.full(len(image_ids), -1, np.int32)
    training = np.flatnonzero(np.asarray(partitions) == "training")
    if len(training):
        rows = training[np.argsort(np.asarray(image_ids)[training])]
        folds[rows] = _deal(np.asarray(groups)[rows], np.asarray(labels)[rows])
    return folds


def _deal(groups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    names, index = np.unique(groups, return_inverse=True)
    if len(names) < FOLDS or np.bincount(labels).max() < FOLDS:
        return index % FOLDS  # too few to balance anything: scikit-learn refuses, and folds stay empty
    from sklearn.model_selection import StratifiedGroupKFold

    folds = np.empty(len(groups), np.int32)
    dealer = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # A class with fewer members than folds is missing in some of them; the data card shows that to the user.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, rows) in enumerate(dealer.split(groups, labels, groups)):
            folds[rows] = fold
    return folds
