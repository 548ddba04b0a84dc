"""The PREDICTIONS table: one row an image, its true class and seven probabilities.

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
from ham_ray.data.layouts import SYNTHETIC_PREFIX
from ham_ray.diagnoses import CODES, PROBABILITIES
from ham_ray.errors import UserError
from ham_ray.evaluation import metrics, thresholds

NEW = "new"
SPLITS = ("training", "validation", "test", NEW)  # new: no model that predicted it was trained or chosen on its lesion
FACTS = ("age", "sex", "localization", "dx_type")  # never a model's input; what evaluation forms subgroups by
RAW, ADJUSTED = tuple(f"raw_{dx}" for dx in CODES), tuple(f"calibrated_{dx}" for dx in CODES)
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("lesion_id", pa.string()),  # null where the source names none
        pa.field("group_id", pa.string(), nullable=False),  # what intervals resample
        pa.field("fold", pa.int32(), nullable=False),  # -1: of no fold
        pa.field("split", pa.string(), nullable=False),  # one of SPLITS
        pa.field("y_true", pa.int32()),  # the place of dx in diagnoses.CODES; null where nobody knows
        *[pa.field(name, pa.float32(), nullable=False) for name in PROBABILITIES],
        pa.field("age", pa.float32()),
        *[pa.field(name, pa.string()) for name in FACTS[1:]],
    ]
)
CALLS = {point: f"mel_{point}" for point in thresholds.POINTS}
# Only in tables of jobs/predict.py: what models gave before calibration, with --raw also what they give after it, and
# whether the probability of melanoma reaches the threshold that had that specificity or sensitivity on validation.
EXTRAS = [
    *[pa.field(name, pa.float32(), nullable=False) for name in (*RAW, *ADJUSTED)],
    *[pa.field(name, pa.bool_(), nullable=False) for name in CALLS.values()],
]


def drawn(frame: pd.DataFrame) -> bool:
    """Whether images of the synthetic sample are among them."""
    return bool(frame["image_id"].str.startswith(SYNTHETIC_PREFIX).any())


def predictions(rows: pd.DataFrame, split: str, probabilities: NDArray[np.floating]) -> pd.DataFrame:
    """The PREDICTIONS of one split.

    Args:
        rows: N rows of `Images.rows`, in the order of `probabilities`.
        split: one of `SPLITS`.
        probabilities: float[N, 7], columns in the order of `diagnoses.CODES`.

    Raises:
        UserError: the counts differ, or `validate` finds a fault.
    """
    if probabilities.shape != (len(rows), len(CODES)):
        raise UserError(
            f"{len(rows)} {split} images need probabilities of shape ({len(rows)}, 7), got {probabilities.shape}"
        )
    frame = rows[["image_id", "lesion_id", "group_id", "fold"]].reset_index(drop=True)
    frame["split"] = split
    frame["y_true"] = rows["label"].to_numpy(np.int32)
    frame[list(PROBABILITIES)] = probabilities.astype(np.float32)
    for name in FACTS:
        frame[name] = rows[name].to_numpy() if name in rows else None
    validate(frame)
    return frame


def with_calls(frame: pd.DataFrame, chosen: Mapping[str, float]) -> pd.DataFrame:
    """The table with a column for each of these thresholds: whether the probability of melanoma reaches it."""
    calls = thresholds.called(frame[list(PROBABILITIES)].to_numpy(), chosen)
    return frame.assign(**{CALLS[name]: reached for name, reached in calls.items()})


def arrays(frame: pd.DataFrame) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """`y_true` int32[N] and the probabilities float32[N, 7] of a PREDICTIONS table, for `metrics`.

    Raises:
        UserError: an image has no true label.
    """
    _refuse("images have no true label", frame["image_id"][frame["y_true"].isna()])
    return frame["y_true"].to_numpy(np.int32), frame[list(PROBABILITIES)].to_numpy(np.float32)


def of_split(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of one of `SPLITS`, renumbered from 0."""
    return frame[frame["split"] == split].reset_index(drop=True)


def validate(frame: pd.DataFrame, images: Iterable[str] | None = None) -> None:
    """Refuse a table that is not PREDICTIONS; with `images`, also one that does not predict just these image ids.

    Raises:
        UserError: a missing column, a missing id, words for numbers, an image twice, missing or surplus images, an
            unknown split, labels outside 0–6, or probabilities that are not finite, lie outside [0, 1] or do not sum to
            1 within 1e-3; with the culprits.
    """
    _refuse("columns are missing", [name for name in SCHEMA.names if name not in frame and name not in FACTS])
    ids = frame["image_id"]
    for name in ("image_id", "group_id"):
        _refuse(f"rows have no {name}", frame.index[frame[name].isna() | (frame[name] == "")])
    for name in (*PROBABILITIES, "fold", *({"age"} & set(frame))):
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
    _refuse("images have a label outside 0–6", ids[~frame["y_true"].isin(metrics.CLASSES) & frame["y_true"].notna()])
    for fault, rows in metrics.faults(frame[list(PROBABILITIES)].to_numpy(np.float64)).items():
        _refuse(f"images have probabilities that {fault}", ids[rows])


def write(frame: pd.DataFrame, uri: str) -> None:
    """Write a validated PREDICTIONS table as one Parquet file at a path or URI, whole or not at all.

    Raises:
        UserError: see `validate`.
    """
    validate(frame)
    fields = [*SCHEMA, *(field for field in EXTRAS if field.name in frame)]
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
    """A PREDICTIONS table read from anywhere, validated; columns that may be empty are added where there are none.

    Raises:
        UserError: `validate` finds a fault; with the table's name.
    """
    optional = [field.name for field in SCHEMA if field.nullable]
    frame = frame.assign(**{column: None for column in optional if column not in frame})
    named = [column for column in ("image_id", "lesion_id", "group_id") if column in frame]
    frame = frame.assign(**{name: frame[name].map(str, na_action="ignore") for name in named})  # numbers are names too
    try:
        validate(frame)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return frame.astype({"y_true": "Int32" if frame["y_true"].isna().any() else "int32"})


def _refuse(what: str, culprits: Iterable[object]) -> None:
    found = [str(culprit) for culprit in culprits]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(f"predictions: {len(found)} {what}: {', '.join(found[:5])}{more}")
