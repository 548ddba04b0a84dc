"""The table that ISIC 2018's Task 3 takes: `image` and a probability of each class under the challenge's names."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ham_ray.diagnoses import DIAGNOSES, PROBABILITIES
from ham_ray.evaluation.predictions import validate

ORDER = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
COLUMNS = {diagnosis.isic: PROBABILITIES[label] for label, diagnosis in enumerate(DIAGNOSES)}
_STEP = 1_000_000_000  # probabilities are written with nine decimals


def to_csv(frame: pd.DataFrame) -> bytes:
    """A PREDICTIONS table as the challenge's CSV.

    Its scorer counts an image whose greatest probability two classes share as wrong, and so would a tie that only
    rounding makes: the class that this project calls (the first of the greatest) stands alone at the top here.

    Raises:
        UserError: the table is no PREDICTIONS.
    """
    validate(frame)
    p = frame[list(PROBABILITIES)].to_numpy(np.float64)
    steps = np.rint(np.clip(p, 0.0, 1.0) * _STEP).astype(np.int64)
    rows, called = np.arange(len(p)), p.argmax(axis=1)
    others = steps.copy()
    others[rows, called] = -1
    second = others.max(axis=1)
    steps[rows, called] = np.maximum(steps[rows, called], np.minimum(second + 1, _STEP))
    others = np.minimum(steps, steps[rows, called][:, None] - 1)
    others[rows, called] = steps[rows, called]
    table = pd.DataFrame({"image": frame["image_id"].to_numpy()})
    for name in ORDER:
        table[name] = others[:, PROBABILITIES.index(COLUMNS[name])] / _STEP
    return table.to_csv(index=False, float_format="%.9f").encode()
