"""Rows of an IMAGES table by where they are stored: what a task needs to read its own images, and no more."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq
from pyarrow import fs


@dataclass(frozen=True)
class StoredRows:
    """Images in an order of one's own: any rows of a table, and where they are stored.

    files: paths on `filesystem`.
    places: for each row its file, the row group in that file and the row in that group, int32[n, 3].
    labels: int32[n].
    size: side of the stored square images in pixels.
    """

    filesystem: fs.FileSystem
    files: tuple[str, ...]
    places: np.ndarray
    labels: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.places)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the pixels of all rows."""
        return len(self) * self.size**2 * 3

    def __getitem__(self, rows: slice | np.ndarray) -> StoredRows:
        """Take these rows, in that order, with the names of their own files alone: small enough for a task."""
        places = self.places[rows]
        used, numbers = np.unique(places[:, 0], return_inverse=True)
        places = np.column_stack([numbers.astype(np.int32), places[:, 1:]])
        return replace(self, files=tuple(self.files[i] for i in used), places=places, labels=self.labels[rows])

    def encoded(self) -> list[bytes]:
        """Read the encoded images; only the row groups that hold one of them are read, each once."""
        result = [b""] * len(self)
        for file, name in enumerate(self.files):
            rows = np.flatnonzero(self.places[:, 0] == file)
            for row, image in zip(rows.tolist(), self._from_file(name, self.places[rows]), strict=True):
                result[row] = image
        return result

    def pixels(self, threads: int = 1) -> np.ndarray:
        """Read and decode: uint8[n, size, size, 3], RGB."""
        result = np.empty((len(self), self.size, self.size, 3), np.uint8)
        with ThreadPoolExecutor(threads) as pool:  # Pillow decodes outside Python's lock
            for row, pixels in enumerate(pool.map(decode, self.encoded())):
                result[row] = pixels
        return result

    def stretches(self, length: int) -> Iterator[StoredRows]:
        """Cut into stretches of at most so many rows."""
        for start in range(0, len(self), length):
            yield self[start : start + length]

    def _from_file(self, name: str, places: np.ndarray) -> list[bytes]:
        with self.filesystem.open_input_file(name) as stream, pq.ParquetFile(stream, pre_buffer=True) as file:
            groups, numbers = np.unique(places[:, 1], return_inverse=True)
            lengths = [file.metadata.row_group(int(group)).num_rows for group in groups]
            starts = np.cumsum([0, *lengths[:-1]])
            column = file.read_row_groups(groups.tolist(), columns=["image"])["image"]
            return column.take(starts[numbers] + places[:, 2]).to_pylist()


def decode(encoded: bytes) -> np.ndarray:
    """Decode an image to uint8[height, width, 3], RGB."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))
