"""The PREDICTIONS table: one row an image, its true class and a probability of each class.

The columns `p_<dx>` name the classes, in the order of labels; a known data set's are in its order, wherever they stand.

Every metric, interval and picture is made from this table, so models from anywhere are compared by the same code,
paired by image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ham_ray import storage
from ham_ray.data import datasets
from ham_ray.data.classes import Classes
from ham_ray.data.layouts import SYNTHETIC_PREFIX
from ham_ray.errors import UserError
from ham_ray.evaluation import metrics, thresholds

NEW = "new"
SPLITS = ("training", "validation", "test", NEW)  # new: no model that predicted it was trained or chosen on its lesion
FACTS = ("age", "sex", "localization", "dx_type")  # never a model's input; what evaluation forms subgroups by
PREFIX = "p_"  # of the columns of probabilities


def schema(classes: Classes) -> pa.Schema:
    """Make the schema of PREDICTIONS of these classes."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("lesion_id", pa.string()),  # null where the source names none
            pa.field("group_id", pa.string(), nullable=False),  # what intervals resample
            pa.field("fold", pa.int32(), nullable=False),  # -1: of no fold
            pa.field("split", pa.string(), nullable=False),  # one of SPLITS
            pa.field("y_true", pa.int32()),  # the label; null where nobody knows
            *[pa.field(name, pa.float32(), nullable=False) for name in classes.probabilities],
            pa.field("age", pa.float32()),
            *[pa.field(name, pa.string()) for name in FACTS[1:]],
        ]
    )


def extras(classes: Classes) -> list[pa.Field]:
    """List the columns that only tables of jobs/predict.py have.

    What models gave before calibration, with --raw also what they give after it, and whether the probability of the
    class in focus reaches the threshold that had that specificity or sensitivity on validation.
    """
    numbers, flags = [*classes.raw, *classes.calibrated], call_columns(classes).values()
    return [
        *[pa.field(name, pa.float32(), nullable=False) for name in numbers],
        *[pa.field(name, pa.bool_(), nullable=False) for name in flags],
    ]


def call_columns(classes: Classes) -> dict[str, str]:
    """Name the column of each of `thresholds.POINTS`; there are none without a class in focus."""
    return {point: f"{classes.focus}_{point}" for point in thresholds.POINTS if classes.focus}


def classes_of(frame: pd.DataFrame) -> Classes:
    """Return the classes that the table's columns of probabilities are of.

    Raises:
        UserError: there are fewer than two such columns.
    """
    codes = [name.removeprefix(PREFIX) for name in map(str, frame.columns) if name.startswith(PREFIX)]
    if len(codes) < 2:
        raise UserError(
            f"predictions: no columns of probabilities, {PREFIX}<class>: {', '.join(map(str, frame))[:200]}"
        )
    return datasets.classes_of(codes)


def drawn(frame: pd.DataFrame) -> bool:
    """Say whether any image of the table is of the synthetic sample."""
    return bool(frame["image_id"].str.startswith(SYNTHETIC_PREFIX).any())


def predictions(rows: pd.DataFrame, split: str, probabilities: NDArray[np.floating], classes: Classes) -> pd.DataFrame:
    """Make the PREDICTIONS of one split.

    Args:
        rows: N rows of `Images.rows`, in the order of `probabilities`.
        split: one of `SPLITS`.
        probabilities: float[N, K], columns in the order of `classes`, as labels are.

    Raises:
        UserError: the counts differ, or `validate` finds a fault.
    """
    if probabilities.shape != (expected := (len(rows), len(classes))):
        raise UserError(f"{len(rows)} {split} images need probabilities of shape {expected}, got {probabilities.shape}")
    frame = rows[["image_id", "lesion_id", "group_id", "fold"]].reset_index(drop=True)
    frame["split"] = split
    frame["y_true"] = rows["label"].to_numpy(np.int32)
    frame[classes.probabilities] = probabilities.astype(np.float32)
    for name in FACTS:
        frame[name] = rows[name].to_numpy() if name in rows else None
    validate(frame)
    return frame


def with_calls(frame: pd.DataFrame, chosen: Mapping[str, float]) -> pd.DataFrame:
    """Add a column for each of these thresholds: whether the probability of the class in focus reaches it."""
    classes = classes_of(frame)
    calls = thresholds.called(frame[classes.probabilities].to_numpy(), chosen, classes.focus_label)
    return frame.assign(**{call_columns(classes)[name]: reached for name, reached in calls.items()})


def arrays(frame: pd.DataFrame) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return `y_true` int32[N] and the probabilities float32[N, K] of a PREDICTIONS table, for `metrics`.

    Raises:
        UserError: an image has no true label.
    """
    _refuse("images have no true label", frame["image_id"][frame["y_true"].isna()])
    return frame["y_true"].to_numpy(np.int32), frame[classes_of(frame).probabilities].to_numpy(np.float32)


def of_split(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    """Select the rows of one of `SPLITS`, renumbered from 0."""
    return frame[frame["split"] == split].reset_index(drop=True)


def validate(frame: pd.DataFrame, images: Iterable[str] | None = None) -> None:
    """Refuse a table that is not PREDICTIONS; with `images`, also one that does not predict just these image ids.

    Raises:
        UserError: a missing column, a missing id, words for numbers, an image twice, missing or surplus images, an
            unknown split, labels of no class, or probabilities that are not finite, lie outside [0, 1] or do not sum to
            1 within 1e-3; with the culprits.
    """
    classes = classes_of(frame)
    _refuse("columns are missing", [name for name in schema(classes).names if name not in frame and name not in FACTS])
    ids = frame["image_id"]
    for name in ("image_id", "group_id"):
        _refuse(f"rows have no {name}", frame.index[frame[name].isna() | (frame[name] == "")])
    for name in (*classes.probabilities, "fold", *({"age"} & set(frame))):
        words = pd.to_numeric(frame[name], errors="coerce").isna() & frame[name].notna()
        _refuse(
            f"images have no number as {name}",
            [f"{i} ({v!r})" for i, v in zip(ids[words], frame[name][words], strict=True)],
        )
    _refuse("images are predicted more than once", ids[ids.duplicated()].unique())
    if images is not None:
        expected = set(images)
        _refuse("images have no prediction", sorted(expected - set(ids)))
        _refuse("images were not asked for", sorted(set(ids) - expected))
    _refuse("images have an unknown split", ids[~frame["split"].isin(SPLITS)])
    last, truth = len(classes) - 1, frame["y_true"]
    lacking = _lacking(classes)
    _refuse(f"images have a label outside 0–{last}{lacking}", ids[~truth.isin(range(last + 1)) & truth.notna()])
    for fault, rows in metrics.faults(frame[classes.probabilities].to_numpy(np.float64)).items():
        _refuse(f"images have probabilities that {fault}{lacking}", ids[rows])


def write(frame: pd.DataFrame, uri: str) -> None:
    """Write a validated PREDICTIONS table as one Parquet file at a path or URI, whole or not at all.

    Raises:
        UserError: see `validate`.
    """
    validate(frame)
    classes = classes_of(frame)
    fields = [*schema(classes), *(field for field in extras(classes) if field.name in frame)]
    columns = frame.reindex(columns=[field.name for field in fields])
    table = pa.Table.from_pandas(columns, schema=pa.schema(fields), preserve_index=False)
    with storage.writing(uri) as temporary:
        pq.write_table(table, temporary)


def read(uri: str) -> pd.DataFrame:
    """Read and validate a PREDICTIONS table.

    Raises:
        UserError: no such file, not Parquet, or `validate` finds a fault.
    """
    if not storage.exists(uri):
        raise UserError(f"no predictions at {uri}")
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{uri} is not a Parquet file: {error}") from None
    return completed(table.to_pandas(), uri)


def completed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Complete a PREDICTIONS table read from anywhere by the columns that may be empty, and validate it.

    Raises:
        UserError: `validate` finds a fault; with the table's name.
    """
    try:
        optional = [field.name for field in schema(classes_of(frame)) if field.nullable]
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    frame = frame.assign(**{column: None for column in optional if column not in frame})
    named = [column for column in ("image_id", "lesion_id", "group_id") if column in frame]
    frame = frame.assign(**{name: frame[name].map(str, na_action="ignore") for name in named})  # numbers are names too
    try:
        validate(frame)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return frame.astype({"y_true": "Int32" if frame["y_true"].isna().any() else "int32"})


def _lacking(classes: Classes) -> str:
    """Say which columns a table lacks if its classes are a known data set's; "" where they cannot be one's."""
    known = [one.classes for one in datasets.DATASETS.values() if one.classes]
    larger = next((one for one in known if {*classes.codes} < {*one.codes}), None)
    missing = [] if larger is None else [name for name in larger.probabilities if name not in classes.probabilities]
    return f" (if columns are missing: {', '.join(missing)})" if missing else ""


def _refuse(what: str, culprits: Iterable[object]) -> None:
    result = [str(culprit) for culprit in culprits]
    if result:
        more = f" and {len(result) - 5} more" if len(result) > 5 else ""
        raise UserError(f"predictions: {len(result)} {what}: {', '.join(result[:5])}{more}")
