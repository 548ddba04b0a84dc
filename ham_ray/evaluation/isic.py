"""The table that ISIC 2018's Task 3 takes: `image` and a probability of each class under the challenge's names."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ham_ray.diagnoses import DIAGNOSES, PROBABILITIES
from ham_ray.evaluation.predictions import validate

ORDER = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
COLUMNS = {diagnosis.isic: PROBABILITIES[label] for label, diagnosis in enumerate(DIAGNOSES)}
CONTROL = "ISIC_0035068"  # row of the challenge's truth without a published image; its scorer gives it the weight 0
_LEAD = 1e-9  # of the called class before one that ties with it


def to_csv(frame: pd.DataFrame) -> bytes:
    """A PREDICTIONS table as the challenge's CSV.

    Its scorer counts an image whose greatest probability two classes share as wrong: the class that this project calls
    (the first of the greatest) stands alone at the top here.

    Raises:
        UserError: the table is no PREDICTIONS.
    """
    validate(frame)
    p = np.clip(frame[list(PROBABILITIES)].to_numpy(np.float64), 0.0, 1.0)
    tied = ties(p)
    p[tied, p[tied].argmax(axis=1)] += _LEAD
    table = pd.DataFrame({"image": frame["image_id"].to_numpy()})
    for name in ORDER:
        table[name] = p[:, PROBABILITIES.index(COLUMNS[name])]
    return table.to_csv(index=False).encode()


def ties(p: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows of p[N, 7] have no single greatest probability."""
    return (p == p.max(axis=1, keepdims=True)).sum(axis=1) > 1
