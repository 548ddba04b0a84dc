"""The IMAGES table: its schema, opening it, and reading chosen rows of it with Ray Data.

IMAGES is a folder: `images-00000.parquet` … (row groups of 128 images, rows in image_id order across the files) and
`dataset.json`, written last. A folder without `dataset.json` is unfinished and is refused.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow import fs

from ham_ray import storage
from ham_ray.data import datasets
from ham_ray.data.classes import Classes
from ham_ray.data.dataset import Dataset
from ham_ray.errors import UserError

if TYPE_CHECKING:
    import ray.data

SCHEMA_VERSION = 1
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
        pa.field("image", pa.binary(), nullable=False),  # encoded at the training size
    ]
)
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
        """Names the content: same images, labels and folds, same fingerprint."""
        return str(self.card["fingerprint"])

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
        """The rows of these folds, in image_id order."""
        return self.rows[self.rows["fold"].isin(folds)]

    def files_of(self, image_ids: Sequence[str]) -> list[str]:
        """Name the Parquet files that hold these images, as paths on their file system.

        Args:
            image_ids: at least one, sorted.
        """
        last = [*self._last_ids.values()]
        return [*self._last_ids][bisect_left(last, image_ids[0]) : bisect_left(last, image_ids[-1]) + 1]

    @cached_property
    def _last_ids(self) -> dict[str, str]:
        """The greatest image_id of each Parquet file, by its path; both ascend."""
        filesystem, files = table_files(self.uri)
        ids = (pq.read_table(file, columns=["image_id"], filesystem=filesystem)["image_id"] for file in files)
        return {file: pc.max(own).as_py() for file, own in zip(files, ids, strict=True)}


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
    if card.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{uri} has schema version {card.get('schema_version')}, this code reads {SCHEMA_VERSION}; ingest it again"
        )
    light = [name for name in SCHEMA.names if name != "image"]
    try:
        rows = (
            _dataset(*table_files(uri)).to_table(columns=light).to_pandas().sort_values("image_id", ignore_index=True)
        )
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{uri} is damaged ({reason}): ingest it again, or copy it whole") from None
    return Images(uri, card, rows)


def table_files(uri: str) -> tuple[fs.FileSystem, list[str]]:
    """The table's Parquet files in their order, as paths on the file system that comes with them."""
    filesystem, path = storage.resolve(uri)
    return filesystem, [f"{path}/{name}" for name in storage.listdir(uri) if name.endswith(".parquet")]


def _dataset(filesystem: fs.FileSystem, files: list[str]) -> pads.Dataset:
    return pads.dataset(files, filesystem=filesystem, format="parquet", schema=SCHEMA)


def read(images: Images, rows: pd.DataFrame) -> ray.data.Dataset:
    """A lazy dataset of these rows: `image_id`, `label` and `pixels` (uint8[size, size, 3], RGB), decoded by tasks.

    `rows` must be a stretch of `images.fold(…)`: all images of its folds between its first and last image_id. The two
    bounds are pushed down to Parquet, so a worker's shard is read from its own row groups only.
    """
    import ray.data
    from ray.data.expressions import col

    from ham_ray.cluster import decoding_cpus  # here: what reads tables without Ray needs none of it

    ids, cpus = rows["image_id"], decoding_cpus()
    chosen = (col("image_id") >= ids.min()) & (col("image_id") <= ids.max())
    chosen = chosen & col("fold").is_in(sorted(int(f) for f in rows["fold"].unique()))
    filesystem, files = table_files(images.uri)
    table = ray.data.read_parquet(files, filesystem=filesystem, num_cpus=cpus).filter(expr=chosen, num_cpus=cpus)
    table = table.select_columns(["image_id", "label", "image"], num_cpus=cpus)
    return table.map_batches(_decode_batch, batch_size=128, num_cpus=cpus)  # type: ignore[arg-type]


def read_pixels(images: Images, rows: pd.DataFrame) -> np.ndarray:
    """The pixels of rows in image_id order, decoded by this process: uint8[n, size, size, 3], in their order."""
    image_ids = rows["image_id"].tolist()
    return read_files(images.uri, images.files_of(image_ids), image_ids)


def read_files(uri: str, files: list[str], image_ids: list[str]) -> np.ndarray:
    """The pixels of images in these files of the table at `uri`, decoded by this process.

    Args:
        uri: of an IMAGES table.
        files: as `Images.files_of` names them. Opening others would read their row groups' statistics in vain.
        image_ids: sorted.

    Returns:
        uint8[n, size, size, 3], in the order of `image_ids`.
    """
    filesystem, _ = storage.resolve(uri)
    name = pads.field("image_id")
    chosen = (name >= image_ids[0]) & (name <= image_ids[-1]) & name.isin(image_ids)  # statistics know the bounds alone
    table = _dataset(filesystem, files).to_table(columns=["image_id", "image"], filter=chosen)
    return np.stack([decode(encoded.as_py()) for encoded in table.sort_by("image_id")["image"]])


def thumbnails(images: Images, image_ids: list[str], size: int = 96) -> dict[str, bytes]:
    """Small JPEGs of these images, by id; at most `size` pixels wide."""
    chosen = pads.field("image_id").isin(image_ids)
    table = _dataset(*table_files(images.uri)).to_table(columns=["image_id", "image"], filter=chosen)
    pairs = zip(table["image_id"].to_pylist(), table["image"].to_pylist(), strict=True)
    return {image_id: small_jpeg(decode(encoded), size) for image_id, encoded in pairs}


def small_jpeg(pixels: np.ndarray, size: int) -> bytes:
    """uint8[height, width, 3] as a JPEG of at most `size` pixels a side."""
    from PIL import Image

    buffer, picture = io.BytesIO(), Image.fromarray(pixels)
    picture.thumbnail((size, size))
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def decode(encoded: bytes) -> np.ndarray:
    """Encoded image to uint8[height, width, 3], RGB."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def _decode_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "image_id": batch["image_id"],
        "label": batch["label"],
        "pixels": np.stack([decode(encoded) for encoded in batch["image"]]),
    }
