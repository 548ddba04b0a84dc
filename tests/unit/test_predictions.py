"""The PREDICTIONS table: what it holds, and that a table with faults is refused by name."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ham10000 import CLASSES, PROBABILITIES

from ham_ray.errors import UserError
from ham_ray.evaluation import predictions as preds

pytestmark = pytest.mark.unit


@pytest.fixture
def rows():
    """Three rows as `Images.fold` gives them: a stretch of a longer table, one lesion unknown."""
    return pd.DataFrame(
        {
            "image_id": ["a", "b", "c"],
            "lesion_id": ["l1", None, "l1"],
            "group_id": ["l1", "b", "l1"],
            "label": np.array([4, 5, 4], np.int32),
            "fold": np.array([0, 0, 0], np.int32),
            "dx": ["mel", "nv", "mel"],
        },
        index=[7, 9, 12],
    )


@pytest.fixture
def frame(rows):
    return preds.predictions(rows, "test", np.eye(7)[[4, 4, 5]], CLASSES)


def test_columns_and_values(frame):
    assert list(frame.columns) == preds.schema(CLASSES).names
    y_true, p = preds.arrays(frame)
    assert y_true.tolist() == [4, 5, 4]
    assert y_true.dtype == np.int32
    assert p.argmax(axis=1).tolist() == [4, 4, 5]
    assert p.dtype == np.float32


def test_written_table_has_the_schema_and_comes_back(frame, tmp_path):
    target = str(tmp_path / "run" / "predictions.parquet")
    preds.write(frame, target)
    assert pq.read_schema(target).equals(preds.schema(CLASSES))
    back = preds.read(target)
    assert back["lesion_id"].isna().tolist() == [False, True, False]
    pd.testing.assert_frame_equal(back[list(PROBABILITIES)], frame[list(PROBABILITIES)])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["predictions.parquet"]


def test_splits_are_told_apart(rows):
    both = pd.concat(
        [
            preds.predictions(rows.iloc[:1], "validation", np.eye(7)[:1], CLASSES),
            preds.predictions(rows.iloc[1:], "test", np.eye(7)[:2], CLASSES),
        ]
    )
    assert preds.of_split(both, "test")["image_id"].tolist() == ["b", "c"]
    assert preds.of_split(both, "test").index.tolist() == [0, 1]


def test_an_image_in_both_splits_is_refused(frame):
    with pytest.raises(UserError, match="3 images are predicted more than once: a, b, c"):
        preds.validate(pd.concat([frame, frame.assign(split="validation")]))


def test_missing_and_surplus_images_are_named(frame):
    preds.validate(frame, images=["c", "b", "a"])
    with pytest.raises(UserError, match="1 images have no prediction: d"):
        preds.validate(frame, images=["a", "b", "c", "d"])
    with pytest.raises(UserError, match="1 images were not asked for: c"):
        preds.validate(frame, images=["a", "b"])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("p_nv", np.nan, "not finite: b"),
        ("p_nv", 1.5, r"outside \[0, 1\]: b"),
        ("p_nv", 0.01, "sum to 1: b"),
        ("y_true", 7, "label outside 0–6: b"),
        ("split", "trial", "unknown split: b"),
    ],
)
def test_faults_name_the_image(frame, tmp_path, column, value, message):
    frame.loc[1, column] = value
    with pytest.raises(UserError, match=message):
        preds.write(frame, str(tmp_path / "predictions.parquet"))
    assert not list(tmp_path.iterdir())


def test_many_culprits_are_counted(rows):
    many = pd.concat([rows.iloc[:1].assign(image_id=f"x{place}") for place in range(8)])
    with pytest.raises(UserError, match=r"8 images .*: x0, x1, x2, x3, x4 and 3 more"):
        preds.predictions(many, "test", np.zeros((8, 7)), CLASSES)


def test_counts_that_differ_are_refused(rows):
    with pytest.raises(UserError, match=r"3 test images need .*\(3, 7\), got \(2, 7\)"):
        preds.predictions(rows, "test", np.eye(7)[:2], CLASSES)


def test_missing_columns_are_named(frame):
    with pytest.raises(UserError, match="columns are missing: group_id"):
        preds.validate(frame.drop(columns=["group_id", "p_df"]))


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(UserError, match="no predictions at"):
        preds.read(str(tmp_path / "none.parquet"))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match="not a Parquet file"):
        preds.read(str(tmp_path / "torn.parquet"))
