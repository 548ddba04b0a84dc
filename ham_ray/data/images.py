"""The IMAGES table: its schema, opening it, and where its rows are stored.

IMAGES is a folder: `images-00000.parquet` … (small row groups; rows by fold, and within a fold in an order that knows
neither class nor file name) and `dataset.json`, written last. A folder without `dataset.json` is unfinished and is
refused. Tables of schema version 1 have their rows in the order of image_id, and no thumbnails.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow import fs

from ham_ray import storage
from ham_ray.data import datasets
from ham_ray.data.classes import Classes
from ham_ray.data.dataset import Dataset
from ham_ray.data.stored import StoredRows
from ham_ray.errors import UserError

SCHEMA_VERSION = 2
READABLE = (1, 2)
ORDER = "fold, hash of image_id"
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("lesion_id", pa.string()),  # null where the source names none (ISIC's test set)
        pa.field("group_id", pa.string(), nullable=False),  # lesions merged with their known near-duplicates
        pa.field("dx", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),  # of dx, in the order of the data card's classes
        pa.field("partition", pa.string(), nullable=False),  # training | validation | test, as the source has it
        pa.field("fold", pa.int32(), nullable=False),  # 0–4; -1 for official validation and test images
        pa.field("age", pa.float32()),
        pa.field("sex", pa.string()),
        pa.field("localization", pa.string()),
        pa.field("dx_type", pa.string()),  # how the label was made: leaks it, never a model input
        pa.field("width", pa.int32(), nullable=False),  # of the source file, in pixels
        pa.field("height", pa.int32(), nullable=False),
        pa.field("pixel_hash", pa.string(), nullable=False),  # sha256 of the resized RGB pixels
        pa.field("thumbnail", pa.binary()),  # 12×9 RGB pixels, for the trivial baseline; null in version 1
        pa.field("image", pa.binary(), nullable=False),  # encoded at the training size
    ]
)
PICTURES = ("thumbnail", "image")  # columns that are read when they are needed
CARD = "dataset.json"
LEAKAGE = "leakage between photographs of one lesion cannot be excluded"  # where images have no lesion


@dataclass(frozen=True)
class Images:
    """An opened IMAGES table: `rows` is every column but the pixels, in image_id order; `size` is in pixels."""

    uri: str
    card: dict[str, Any]
    rows: pd.DataFrame

    @property
    def size(self) -> int:
        """Side of the square stored images in pixels."""
        return int(self.card["size"])

    @property
    def fingerprint(self) -> str:
        """The sha256 that names the content: same images, labels and folds, same fingerprint."""
        return str(self.card["fingerprint"])

    @property
    def order(self) -> dict[str, str]:
        """What the order of the rows adds to the identity of a training: nothing where they are sorted by image_id."""
        return {} if self.card["schema_version"] == 1 else {"order": ORDER}

    @cached_property
    def classes(self) -> Classes:
        """The classes, in the order of labels."""
        return datasets.classes_of([*self.card["classes"]])

    @property
    def dataset(self) -> Dataset:
        """The data set that the table was made of."""
        return datasets.of_card(self.card)

    @cached_property
    def ungrouped(self) -> bool:
        """Whether images in folds have no lesion: photographs of one lesion may then be in two of them."""
        return ungrouped(self.rows) > 0

    def fold(self, *folds: int) -> pd.DataFrame:
        """Take the rows of these folds, in stored order."""
        return self.rows[self.rows["fold"].isin(folds)]

    def stored(self, rows: pd.DataFrame) -> StoredRows:
        """Say where these rows of `self.rows` are stored, by their index: what tasks read them by."""
        if not self.rows["image_id"].reindex(rows.index).equals(rows["image_id"]):
            raise AssertionError("these rows have lost the index by which the table knows them")
        positions = rows.index.to_numpy()
        groups, starts = self._groups
        group = np.searchsorted(starts, positions, side="right") - 1
        places = np.column_stack([groups[group], positions - starts[group]]).astype(np.int32)
        filesystem, files = table_files(self.uri)
        return StoredRows(filesystem, tuple(files), places, rows["label"].to_numpy(np.int32), self.size)

    @cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray]:
        """The row groups: file and number in it, int[g, 2], and the row that each starts with, int[g]."""
        filesystem, files = table_files(self.uri)
        groups, lengths = [], []
        for number, name in enumerate(files):
            with filesystem.open_input_file(name) as stream, pq.ParquetFile(stream) as file:
                groups += [(number, group) for group in range(file.num_row_groups)]
                lengths += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        return np.array(groups, int).reshape(-1, 2), np.cumsum([0, *lengths])[:-1]


def ungrouped(rows: pd.DataFrame) -> int:
    """Count the images in folds that have no lesion; `rows` have the columns lesion_id and fold."""
    return int(rows["lesion_id"][rows["fold"] >= 0].isna().sum())


def open_images(uri: str) -> Images:
    """Open an IMAGES folder at a path or URI.

    Raises:
        UserError: no such folder, unfinished, or written under another schema version.
    """
    uri = storage.absolute(uri)
    if not storage.exists(storage.join(uri, CARD)):
        raise UserError(
            f"{uri} is not a finished IMAGES table (no {CARD}); make one: python jobs/ingest.py ARCHIVE --out {uri}"
        )
    card = storage.read_object(storage.join(uri, CARD), "ingest it again")
    if card.get("schema_version") not in READABLE:
        raise UserError(
            f"{uri} has schema version {card.get('schema_version')}, this code reads up to {SCHEMA_VERSION}; update it"
        )
    light = [name for name in SCHEMA.names if name not in PICTURES]
    try:
        rows = _dataset(uri).to_table(columns=light).to_pandas()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{uri} is damaged ({reason}): ingest it again, or copy it whole") from None
    return Images(uri, card, rows)


def table_files(uri: str) -> tuple[fs.FileSystem, list[str]]:
    """List the table's Parquet files in their order, as paths on the file system that comes with them."""
    filesystem, path = storage.resolve(uri)
    return filesystem, [f"{path}/{name}" for name in storage.listdir(uri) if name.endswith(".parquet")]


def _dataset(uri: str) -> pads.Dataset:
    filesystem, files = table_files(uri)
    return pads.dataset(files, filesystem=filesystem, format="parquet", schema=SCHEMA)


def read_pixels(images: Images, rows: pd.DataFrame) -> np.ndarray:
    """Read and decode rows of the table in this process: uint8[n, size, size, 3], in the order of `rows`."""
    return images.stored(rows).pixels()


def thumbnails(images: Images, image_ids: list[str], size: int = 96) -> dict[str, bytes]:
    """Make small JPEGs of these images, by id; at most `size` pixels a side."""
    rows = images.rows[images.rows["image_id"].isin(image_ids)]
    pixels = images.stored(rows).pixels()
    return {image_id: small_jpeg(one, size) for image_id, one in zip(rows["image_id"], pixels, strict=True)}


def small_jpeg(pixels: np.ndarray, size: int) -> bytes:
    """Encode uint8[height, width, 3] as a JPEG of at most `size` pixels a side."""
    from PIL import Image

    buffer, picture = io.BytesIO(), Image.fromarray(pixels)
    picture.thumbnail((size, size))
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
