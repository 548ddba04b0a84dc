"""Folds that can be believed: all images of a lesion, and of lesions that are one in truth, are in the same fold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from ham_ray.data.classes import Classes
from ham_ray.data.datasets import NEAR_DUPLICATES
from ham_ray.data.terms import FOLDS
from ham_ray.errors import UserError

LEAST_IMAGES = 10  # of a fold: below it no figure of the fold says anything


def group_ids(image_ids: Sequence[str], lesion_ids: Sequence[str | None], pixel_hashes: Sequence[str]) -> list[str]:
    """Return the group of each image: its lesion, merged with all that share pixels or a known near-duplicate with it.

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


def hopeless(dx: Sequence[str], groups: Sequence[str]) -> str | None:
    """Say why no training could work on images of these diagnoses and groups, whatever the folds; None if it could."""
    if len(dx) and len(set(dx)) == 1:
        return f"all {len(dx):,} images are {dx[0]}: nothing can be learned from one class"
    if len(dx) and len(set(groups)) < 3:
        return f"{len(dx):,} images of {len(set(groups))} lesions: training, validation and test need one each at least"
    return None


def thin_folds(rows: pd.DataFrame, classes: Classes) -> list[str]:
    """Say which classes no fold or not every fold has, and which fold has few images; empty where all is well.

    `rows` are those of an IMAGES table; images of fold -1, the official validation and test sets, do not count.
    """
    dealt = rows[rows["fold"] >= 0]
    if dealt.empty:
        return ["no image of the training partition: this table can be predicted and evaluated, not trained on"]
    notes = []
    if absent := [code for code in classes.codes if code not in set(dealt["dx"])]:
        notes.append(f"no image is {', '.join(absent)}: a model trained on this table will not predict them")
    thin = [
        f"{code} in {_listed(sorted(set(part['fold'])))} ({len(part):,} images of {part['group_id'].nunique()} lesions)"
        for code, part in dealt.groupby("dx")
        if part["fold"].nunique() < FOLDS
    ]
    if thin:
        notes.append(
            f"classes that not all folds have: {'; '.join(thin)}. A model of the other folds alone cannot call "
            "them, and figures of those folds say nothing of them"
        )
    counts = Counter(dealt["fold"])
    if few := {fold: counts[fold] for fold in range(FOLDS) if counts[fold] < LEAST_IMAGES}:
        said = ", ".join(f"fold {fold} has {count}" for fold, count in few.items())
        notes.append(f"{len(dealt):,} images are too few for figures that one could believe: {said}")
    return notes


def _listed(folds: Sequence[int]) -> str:
    return ", ".join(map(str, folds))


def assign_folds(
    image_ids: Sequence[str], groups: Sequence[str], labels: Sequence[int], partitions: Sequence[str]
) -> np.ndarray:
    """Assign a fold to each image, int32[N]: 0–4, or -1 outside the training partition.

    Groups stay whole, and classes have equal shares. The result is the same on every machine and for every order of
    rows: they are sorted by image_id before they are dealt out.
    """
    folds = np.full(len(image_ids), -1, np.int32)
    training = np.flatnonzero(np.asarray(partitions) == "training")
    if len(training):
        rows = training[np.argsort(np.asarray(image_ids)[training])]
        folds[rows] = _deal(np.asarray(groups)[rows], np.asarray(labels)[rows])
    return folds


def own_folds(rows: pd.DataFrame) -> np.ndarray:
    """Read the folds that the user's own table names, int32[N], from a column `fold` of strings.

    Raises:
        UserError: a row has none, or images of one group are in two folds; with the culprits.
    """
    if len(without := rows["image_id"][rows["fold"] == ""]):
        raise UserError(
            f"{len(without):,} images have no fold, such as {without.iloc[0]}: name one of each, or of none"
        )
    folds = rows.groupby("group_id")["fold"].agg(lambda fold: sorted({*fold}))
    if len(torn := folds[folds.map(len) > 1]):
        raise UserError(
            f"{len(torn):,} groups have images in several folds, such as {torn.index[0]!r} in "
            f"{', '.join(torn.iloc[0])}: its images resemble each other, and what was learned would be "
            "tested; put each group in one fold"
        )
    return rows["fold"].to_numpy().astype(np.int32)


def _deal(groups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Deal groups out to folds as scikit-learn's StratifiedGroupKFold(5, shuffle=True, random_state=0) of 1.8 does.

    Written out here, because older versions mix up the groups when they shuffle (scikit-learn #32540), so that folds
    would depend on what is installed; and because this is ten times as fast.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    classes, class_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (group_of, class_of), 1)
    order = np.arange(len(names))
    np.random.RandomState(0).shuffle(order)
    order = order[np.argsort(-np.std(counts[order], axis=1), kind="stable")]  # the hardest to place come first
    fold_of, dealt, totals = np.empty(len(names), np.int32), np.zeros((FOLDS, len(classes))), counts.sum(axis=0)
    for group in order:
        fold = fold_of[group] = _best_fold(dealt, counts[group], totals)
        dealt[fold] += counts[group]
    return fold_of[group_of]


def _best_fold(dealt: np.ndarray, group: np.ndarray, totals: np.ndarray) -> int:
    """Return the fold that, with this group, leaves class shares the most even; of equal ones the emptier."""
    trials = dealt + np.eye(FOLDS)[:, :, None] * group  # [fold it would go to, fold, class]
    unevenness = np.std(trials / totals, axis=1).mean(axis=1).tolist()
    images = dealt.sum(axis=1).tolist()
    best = 0
    for fold in range(1, FOLDS):
        equal = math.isclose(unevenness[fold], unevenness[best], rel_tol=1e-5, abs_tol=1e-8)
        if unevenness[fold] < unevenness[best] or (equal and images[fold] < images[best]):
            best = fold
    return best
