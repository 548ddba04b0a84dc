"""Pictures packed in Parquet files, as data sets on Hugging Face hold them: what they are, and unpacking them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ham_ray import storage
from ham_ray.data import user_tables
from ham_ray.data.archives import Member
from ham_ray.errors import UserError

PICTURE = "image"  # a column: the file's bytes, or a struct of `bytes` and `path`
DIAGNOSES = ("dx", "diagnosis", "label")
_BATCH = 16  # pictures in memory at once: some 5 MB of HAM10000's originals


def is_packed(member: Member) -> bool:
    """Say whether a file is Parquet with a column of pictures and one of diagnoses.

    Raises:
        UserError: its name ends in .parquet, and it is no whole Parquet file.
    """
    if member.place is not None or not member.file_name.lower().endswith(".parquet"):
        return False
    schema = _open(member).schema_arrow
    return PICTURE in schema.names and any(name in schema.names for name in DIAGNOSES) and _holds_bytes(schema)


def read_metadata(members: Sequence[Member]) -> pd.DataFrame:
    """Read all columns but the pictures, as strings, with the `file` of each row.

    Where there is no column image_id, the name of the picture's file, without folder and suffix, stands for it.
    """
    return pd.concat([_rows(member).assign(file=member.label) for member in members], ignore_index=True).fillna("")


def index(members: Sequence[Member]) -> dict[str, list[Member]]:
    """Map image_ids to pictures, which can be read once they are `unpacked`."""
    images: dict[str, list[Member]] = defaultdict(list)
    for number, member in enumerate(members):
        for row, image_id in enumerate(_rows(member)["image_id"]):
            images[image_id].append(Member("", _name(number, row), f"{member.label}, row {row + 1}", 0))
    return dict(images)


def unpacked(images: dict[str, list[Member]], packed: Iterable[Path], folder: Path) -> dict[str, list[Member]]:
    """Write the pictures as files into `folder`, and map image_ids to these files.

    A Parquet file that an earlier start has unpacked is not unpacked again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(packed):
        done = folder / f"{number:03d}.done"
        if not done.exists():
            for row, data in enumerate(_pictures(path)):
                (folder / _name(number, row)).write_bytes(data)
            storage.write_bytes(done, b"")
    return {
        image_id: [m._replace(container=str(folder), size=(folder / m.name).stat().st_size) for m in members]
        for image_id, members in images.items()
    }


def _name(number: int, row: int) -> str:
    return f"{number:03d}-{row:06d}"


def _open(member: Member) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(Path(member.container, member.name))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read {member.label}: no whole Parquet file ({reason}); download it again") from None


def _holds_bytes(schema: pa.Schema) -> bool:
    kind = schema.field(PICTURE).type
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _rows(member: Member) -> pd.DataFrame:
    """Read the rows of one file as strings, without the pictures, with image_id and dx."""
    file = _open(member)
    light = [name for name in file.schema_arrow.names if name != PICTURE]
    rows = user_tables.text_columns(file.read(columns=light))
    rows.columns = rows.columns.str.lower()
    dx = next((name for name in DIAGNOSES if name in rows), None)
    if dx is None:
        raise UserError(f"{member.label} has no column {' or '.join(DIAGNOSES)}; found {', '.join(rows.columns)}")
    names = _class_names(file.schema_arrow, dx)
    rows["dx"] = rows[dx].map(lambda text: names[int(text)] if text.isdigit() and int(text) < len(names) else text)
    if "image_id" not in rows:
        rows["image_id"] = _file_names(file, Path(member.name).stem)
    return rows


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """Return the words behind the numbers of a column of classes, empty where there are none.

    Hugging Face's library keeps them in the schema's metadata.
    """
    described = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(described).get("info", {}).get("features", {})
    return list(features.get(column, {}).get("names", []))


def _file_names(file: pq.ParquetFile, stem: str) -> list[str]:
    """Make an id for each row: the picture's file name without folder and suffix, else `stem` and the row's number."""
    kind = file.schema_arrow.field(PICTURE).type
    paths: list[str | None] = [None] * file.metadata.num_rows
    if pa.types.is_struct(kind) and any(field.name == "path" for field in kind):
        paths = [
            row.get("path") if row else None for row in file.read(columns=[f"{PICTURE}.path"])[PICTURE].to_pylist()
        ]
    return [Path(path).stem if path else f"{stem}-{row:06d}" for row, path in enumerate(paths)]


def _pictures(path: Path) -> Iterator[bytes]:
    """Yield the bytes of each row's picture, b"" where it has none."""
    file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)  # a stream, no whole row group in memory
    struct = pa.types.is_struct(file.schema_arrow.field(PICTURE).type)
    for batch in file.iter_batches(_BATCH, columns=[f"{PICTURE}.bytes" if struct else PICTURE]):
        column = batch.column(0)
        for value in column.field("bytes") if struct else column:
            yield value.as_py() or b""
