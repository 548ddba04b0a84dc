"""Writing the files of an IMAGES table from prepared parts, a row group at a time: memory does not grow with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ham_ray import hardware
from ham_ray.data.images import SCHEMA

ROW_GROUP = 128  # rows: the least that a worker's shard reads
Read = Callable[[str, str], Iterable[pa.Table]]
_LIGHT = pa.schema([field for field in SCHEMA if field.name != "image"])
_FORMAT = {  # images are compressed already, and looking for equal ones among them costs time
    "compression": {name: "ZSTD" for name in _LIGHT.names} | {"image": "NONE"},
    "use_dictionary": _LIGHT.names,
    "write_statistics": _LIGHT.names,
}


def write(folder: Path, rows: pd.DataFrame, read: Read, metadata: dict[str, str], size: int) -> None:
    """Write `images-00000.parquet`, … into the folder, as many at once as there are cores.

    `rows` is IMAGES without the column `image`, sorted by image_id. `read(first, last)` gives tables with the columns
    `image_id` and `image`, sorted as well, that hold the images from first to last, and may hold others: quarantined
    ones, and those of neighbouring files. `metadata` goes into each file's schema.
    """
    schema = SCHEMA.with_metadata({f"ham_ray.{key}": value for key, value in metadata.items()})
    length = ROW_GROUP * _groups_a_file(size)

    def write_file(number: int) -> None:
        stretch = rows.iloc[number * length : (number + 1) * length]
        tables = read(stretch["image_id"].iloc[0], stretch["image_id"].iloc[-1])
        with pq.ParquetWriter(folder / f"images-{number:05d}.parquet", schema, **_FORMAT) as writer:
            for group in _row_groups(_joined(stretch, tables), ROW_GROUP):
                writer.write_table(group.cast(schema), row_group_size=ROW_GROUP)

    with ThreadPoolExecutor(hardware.cores()) as pool:
        list(pool.map(write_file, range(math.ceil(len(rows) / length))))


def _groups_a_file(size: int) -> int:
    """Compute how many row groups go into a file: 16 of them, 2,048 images, up to 128 px.

    Above there are fewer, so that a file keeps its bytes.
    """
    return max(1, min(16, 16 * 128 * 128 // size**2))


def _joined(rows: pd.DataFrame, parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    wanted = pa.array(rows["image_id"], pa.string())
    index = 0
    for part in parts:
        kept = part.filter(pc.is_in(part["image_id"], wanted))
        stretch = pa.Table.from_pandas(rows.iloc[index : index + len(kept)], _LIGHT, preserve_index=False)
        if not stretch["image_id"].equals(kept["image_id"]):
            raise AssertionError("parts and rows are not in the same order")
        index += len(kept)
        yield stretch.append_column(SCHEMA.field("image"), kept["image"])


def _row_groups(tables: Iterable[pa.Table], length: int) -> Iterator[pa.Table]:
    pending = SCHEMA.empty_table()
    for table in tables:
        pending = pa.concat_tables([pending, table])
        while len(pending) >= length:
            yield pending.slice(0, length)
            pending = pending.slice(length)
    if len(pending):
        yield pending
