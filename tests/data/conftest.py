"""Small archives of drawn images, in any layout and with any damage."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

KAGGLE_COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
CODES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]


def jpeg(seed: int, size: tuple[int, int] = (60, 45)) -> bytes:
    """A smooth random JPEG, width × height."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def table(rows: list[dict[str, str]], columns: list[str], separator: str = ",") -> bytes:
    """Rows as a delimited file with just these columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter=separator, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


class ArchiveBuilder:
    """An archive to damage before it is written: `rows` of metadata and `files` by name.

    42 images of 28 lesions, four lesions of each class; every second lesion has two images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []
        self.files: dict[str, bytes] = {}
        for lesion in range(28):
            for _ in range(1 + lesion % 2):
                number = len(self.rows)
                row = {"lesion_id": f"HAM_{lesion:07d}", "image_id": f"ISIC_{number:07d}", "dx": CODES[lesion % 7]}
                row |= {
                    "dx_type": "histo",
                    "age": "45.0",
                    "sex": "male",
                    "localization": "back",
                    "dataset": "rosendahl",
                }
                self.rows.append(row)
                self.files[self.name(number)] = jpeg(number)

    def name(self, number: int) -> str:
        """The file of that image in Kaggle's layout."""
        return f"HAM10000_images_part_{1 + number % 2}/ISIC_{number:07d}.jpg"

    def kaggle(self, columns: list[str] = KAGGLE_COLUMNS) -> dict[str, bytes]:
        """All files of Kaggle's layout."""
        return {"HAM10000_metadata.csv": table(self.rows, columns)} | self.files

    def to_folder(self, files: dict[str, bytes] | None = None, name: str = "archive") -> Path:
        """Write a folder (Kaggle's layout by default) and return its path."""
        for relative, data in (self.kaggle() if files is None else files).items():
            path = self.folder / name / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return self.folder / name

    def to_zip(self, files: dict[str, bytes] | None = None, name: str = "archive.zip") -> Path:
        """Write a zip (Kaggle's layout by default), every second member deflated, and return its path."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(self.folder / name, "w") as archive:
            for place, (member, data) in enumerate((self.kaggle() if files is None else files).items()):
                method = zipfile.ZIP_DEFLATED if place % 2 else zipfile.ZIP_STORED
                archive.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), data, method)
        return self.folder / name


@pytest.fixture
def builder(tmp_path: Path) -> ArchiveBuilder:
    """A sound archive, not written yet."""
    return ArchiveBuilder(tmp_path)


@pytest.fixture
def draw():
    """`draw(seed, size)`: the bytes of a JPEG."""
    return jpeg


@pytest.fixture
def delimited():
    """`delimited(rows, columns, separator)`: the bytes of a metadata file."""
    return table
