"""The challenge's table: its columns, its numbers, and no tie that its scorer would count as wrong."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES, CODES

from ham_ray.errors import UserError
from ham_ray.evaluation import isic
from ham_ray.evaluation.predictions import predictions

pytestmark = pytest.mark.unit
COLUMNS = ["image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


def table(p: np.ndarray) -> pd.DataFrame:
    names = [f"ISIC_{place:07d}" for place in range(len(p))]
    rows = pd.DataFrame({"image_id": names, "lesion_id": None, "group_id": names, "fold": -1, "label": 0})
    return predictions(rows, "new", p, CLASSES)


def written(p: np.ndarray) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(isic.to_csv(table(p))))


def test_columns_and_values():
    p = np.random.default_rng(0).dirichlet(np.ones(7), 50).astype(np.float32)
    found = written(p)
    assert found.columns.tolist() == COLUMNS and found["image"].iloc[3] == "ISIC_0000003"
    for name in COLUMNS[1:]:
        np.testing.assert_allclose(found[name], p[:, CODES.index(name.lower())], atol=1e-9)


def test_the_smallest_probabilities_keep_their_order():
    """AUC and AP rank them; rounded to some decimals they would tie."""
    p = np.full((5, 7), 1e-12)
    p[:, 0] *= [1, 2, 3, 4, 5]
    p[:, 5] = 1 - p[:, :5].sum(axis=1)
    assert written(p)["AKIEC"].is_monotonic_increasing and written(p)["AKIEC"].nunique() == 5


@pytest.mark.parametrize(
    "row",
    [
        np.full(7, 1 / 7),
        np.array([0.5, 0.5, 0, 0, 0, 0, 0]),
        np.eye(7)[4],
        np.array([0.4 + 2e-10, 0.4, 0.2, 0, 0, 0, 0]),
    ],
)
def test_the_class_that_is_called_stands_alone_at_the_top(row: np.ndarray):
    found = written(np.array([row]))[COLUMNS[1:]].iloc[0]
    assert (found == found.max()).sum() == 1
    assert found.idxmax() == CODES[row.argmax()].upper()
    assert found.between(0, 1).all()
    np.testing.assert_allclose(found[[code.upper() for code in CODES]], row, atol=3e-9)


def test_whole_numbers_are_written_as_the_floats_the_scorer_wants():
    text = isic.to_csv(table(np.eye(7))).decode()
    assert all(cell.count(".") == 1 for line in text.splitlines()[1:] for cell in line.split(",")[1:])


def test_what_is_no_prediction_is_refused():
    frame = table(np.eye(7))
    frame.loc[2, "p_nv"] = np.nan
    with pytest.raises(UserError, match="not finite: ISIC_0000002"):
        isic.to_csv(frame)
