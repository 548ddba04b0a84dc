"""Writing the files of an IMAGES table from prepared parts, some files at once: memory does not grow with the table."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ham_ray import hardware
from ham_ray.data.images import PICTURES, SCHEMA

ROW_GROUP = 32  # rows: the least that is read; small, for a streamed epoch reads groups in an order of its own
Read = Callable[[np.ndarray], pa.Table]
_LIGHT = pa.schema([field for field in SCHEMA if field.name not in PICTURES])
_FORMAT = {  # images are compressed already, and looking for equal ones among them costs time
    "compression": {name: "ZSTD" for name in _LIGHT.names} | dict.fromkeys(PICTURES, "NONE"),
    "use_dictionary": _LIGHT.names,
    "write_statistics": _LIGHT.names,
}


def stored_order(rows: pd.DataFrame) -> np.ndarray:
    """Return the order in which rows are stored, int64[n]: by fold, and within a fold by a hash of image_id.

    So a split is a stretch for each of its folds, and its order knows neither class nor file name.
    """
    hashes = [hashlib.sha256(image_id.encode()).digest() for image_id in rows["image_id"]]
    return np.array(sorted(range(len(rows)), key=lambda row: (rows["fold"].iat[row], hashes[row])), dtype=np.int64)


def write(folder: Path, rows: pd.DataFrame, read: Read, metadata: dict[str, str], size: int) -> None:
    """Write `images-00000.parquet`, … into the folder, as many at once as there are cores.

    Args:
        rows: IMAGES without its pictures, in the order in which they are to be stored.
        read: makes a table of the columns `PICTURES` for these row numbers of `rows`, in that order.
        metadata: goes into each file's schema.
        size: of the stored images in pixels: the larger, the fewer rows a file.
    """
    schema = SCHEMA.with_metadata({f"ham_ray.{key}": value for key, value in metadata.items()})
    length = _images_a_file(size)

    def write_file(number: int) -> None:
        stretch = rows.iloc[number * length : (number + 1) * length]
        pictures = read(np.arange(number * length, number * length + len(stretch)))
        table = pa.Table.from_pandas(stretch, _LIGHT, preserve_index=False)
        for name in PICTURES:
            table = table.append_column(schema.field(name), pictures[name])
        starts = [0, *(np.flatnonzero(np.diff(stretch["fold"])) + 1).tolist(), len(stretch)]
        with pq.ParquetWriter(folder / f"images-{number:05d}.parquet", schema, **_FORMAT) as writer:
            for start, stop in itertools.pairwise(starts):  # no row group has rows of two folds
                writer.write_table(table.slice(start, stop - start).cast(schema), row_group_size=ROW_GROUP)

    with ThreadPoolExecutor(hardware.cores()) as pool:
        list(pool.map(write_file, range(math.ceil(len(rows) / length))))


def _images_a_file(size: int) -> int:
    """Return 2,048 images up to 128 px, fewer above, so that a file keeps its bytes."""
    return max(128, min(2048, 2048 * 128 * 128 // size**2 // 128 * 128))
