"""The tables that ISIC's challenges take: `image` and a probability of each class under the challenge's names."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ham_ray.data import datasets
from ham_ray.data.classes import Classes
from ham_ray.data.dataset import Challenge
from ham_ray.errors import UserError, listed
from ham_ray.evaluation.predictions import classes_of, validate

_LEAD = 1e-9  # of the predicted class before one that ties with it


def challenge_of(classes: Classes) -> Challenge:
    """Return the challenge of these classes.

    Raises:
        UserError: no challenge has these classes.
    """
    dataset = datasets.of_classes(classes)
    if dataset is None or dataset.challenge is None:
        known = listed(challenge.name for challenge in datasets.challenges())
        raise UserError(f"ISIC's table is of the classes of {known}; these are {', '.join(classes.codes)}")
    return dataset.challenge


def recognised(columns: set[str]) -> Challenge | None:
    """Return the challenge whose table has these columns; None: it is of none."""
    known = [
        one for one in datasets.challenges() if {"image", *(name for name, dx in one.columns.items() if dx)} <= columns
    ]
    return known[0] if known else None


def to_csv(frame: pd.DataFrame) -> bytes:
    """Write a PREDICTIONS table as the challenge's CSV.

    Its scorer counts an image whose greatest probability two classes share as wrong: the class that this project
    predicts (the first of the greatest) stands alone at the top here.

    Raises:
        UserError: the table is no PREDICTIONS, or of classes without a challenge.
    """
    validate(frame)
    classes = classes_of(frame)
    p = np.clip(frame[classes.probabilities].to_numpy(np.float64), 0.0, 1.0)
    tied = ties(p)
    p[tied, p[tied].argmax(axis=1)] += _LEAD
    table = pd.DataFrame({"image": frame["image_id"].to_numpy()})
    for name, dx in challenge_of(classes).columns.items():
        table[name] = p[:, classes.labels[dx]] if dx else 0.0
    return table.to_csv(index=False).encode()


def ties(p: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Say which rows of p[N, K] have no single greatest probability, bool[N]."""
    return (p == p.max(axis=1, keepdims=True)).sum(axis=1) > 1
