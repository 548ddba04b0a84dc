"""A small archive of drawn lesions in Kaggle's layout: for trying everything out where HAM10000 is not at hand.

The classes differ in colour, shape and texture and overlap, so that a model can learn them and still be wrong. The
drawings have no medical meaning; the archive holds `SYNTHETIC.txt`, and all that is made from it says so.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ham_ray import storage
from ham_ray.data.layouts import SYNTHETIC_MARKER, SYNTHETIC_PREFIX
from ham_ray.diagnoses import CODES

_LEAST_LESIONS = 10  # of a class: two a fold
_IMAGES_A_LESION = (0.74, 0.19, 0.07)  # shares of lesions with 1, 2 and 3 images, as in HAM10000


class _Look(NamedTuple):
    """How a class is drawn: its share of lesions in HAM10000, and means around which each lesion varies."""

    share: float
    colour: tuple[float, ...]  # RGB, 0–255
    radius: float  # of the picture's height
    ragged: float  # relative unevenness of the border
    speckle: float  # contrast of fine texture, in grey levels
    patches: float  # contrast of coarse texture
    centre: float  # brightness of the centre against the border


_LOOKS = {
    "akiec": _Look(0.031, (190, 110, 95), 0.28, 0.22, 20, 12, 10),
    "bcc": _Look(0.044, (200, 130, 130), 0.24, 0.12, 8, 22, 25),
    "bkl": _Look(0.097, (150, 110, 80), 0.30, 0.10, 24, 10, 0),
    "df": _Look(0.010, (165, 115, 95), 0.20, 0.06, 8, 6, 55),
    "mel": _Look(0.082, (95, 65, 60), 0.34, 0.28, 14, 34, -10),
    "nv": _Look(0.723, (130, 85, 65), 0.24, 0.06, 10, 8, -15),
    "vasc": _Look(0.013, (165, 40, 60), 0.20, 0.10, 6, 16, -20),
}
_SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "unknown")


def write_sample(path: str | Path, lesions: int = 330, seed: int = 0, size: tuple[int, int] = (200, 150)) -> Path:
    """Write the archive (a zip of some 1.3 images a lesion, `size` = width × height in pixels) and return its path.

    Equal arguments give equal bytes under the same NumPy and Pillow. Each class has at least ten lesions, or its
    equal part of them where `lesions` is under 70; the rest follows HAM10000's shares.
    """
    random = np.random.default_rng(seed)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"])
    with storage.writing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        number = 0
        for lesion, dx in enumerate(_diagnoses(lesions, random)):
            facts = [dx, "synthetic", *_patient(random)]
            shape = random.normal(size=32)
            for _ in range(random.choice(3, p=_IMAGES_A_LESION) + 1):
                image_id = f"{SYNTHETIC_PREFIX}{number:06d}"
                rows.writerow([f"DRAWN_{lesion:06d}", image_id, *facts])
                _add(archive, f"HAM10000_images_part_{1 + number % 2}/{image_id}.jpg", _draw(dx, shape, size, random))
                number += 1
        _add(archive, "HAM10000_metadata.csv", table.getvalue().encode())
        _add(archive, SYNTHETIC_MARKER, b"Drawn by ham_ray.data.sample. No photographs, no medical meaning.\n")
    return Path(path)


def _diagnoses(lesions: int, random: np.random.Generator) -> list[str]:
    least = min(_LEAST_LESIONS, lesions // len(CODES))
    counts = {dx: max(least, round(_LOOKS[dx].share * lesions)) for dx in CODES if dx != "nv"}
    counts["nv"] = max(least, lesions - sum(counts.values()))
    names = [dx for dx in CODES for _ in range(counts[dx])]
    return [names[place] for place in random.permutation(len(names))]


def _patient(random: np.random.Generator) -> list[str]:
    age = "" if random.random() < 0.02 else f"{5.0 * random.integers(4, 17)}"
    return [age, str(random.choice(["male", "female"])), str(random.choice(_SITES))]


def _draw(dx: str, shape: np.ndarray, size: tuple[int, int], random: np.random.Generator) -> bytes:
    """A JPEG of a lesion. `shape` (32 normal numbers) is the lesion's own, the rest differs from image to image."""
    look, (width, height) = _blend(dx, 0.75 + 0.3 * shape[23]), size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x - width * (0.5 + 0.05 * random.normal()), y - height * (0.5 + 0.05 * random.normal())
    angle = np.arctan2(y, x) + random.uniform(0, 2 * np.pi)
    waves = sum(shape[k] * np.cos(k * angle + 3 * shape[8 + k]) / k for k in range(2, 7))
    radius = height * look.radius * (1 + 0.25 * np.tanh(shape[16])) * (1 + look.ragged * waves)
    inside = np.hypot(x, y * (1 + 0.15 * shape[17])) / np.maximum(radius, height * 0.05)
    cover = 1 / (1 + np.exp(10 * (inside - 1)))

    skin = np.array([226, 178, 160]) + 10 * random.normal() + 6 * random.normal(size=3)
    colour = np.array(look.colour) + 16 * shape[18] + 6 * shape[19:22]
    light = look.centre * (1 - np.clip(inside, 0, 1)) + look.speckle * _noise(3, size, random)
    light = light + look.patches * (1 + 0.3 * shape[22]) * _noise(30, size, random)
    lesion = colour + light[..., None]
    picture = skin + (6 * _noise(40, size, random) + 3 * _noise(2, size, random))[..., None]
    picture = picture + cover[..., None] * (lesion - picture)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _blend(dx: str, purity: float) -> _Look:
    """A class's look mixed with the naevus's: the lower the purity, the harder to tell apart."""
    weight = float(np.clip(purity, 0, 1))
    own, other = _LOOKS[dx], _LOOKS["nv"]
    colour = tuple(weight * a + (1 - weight) * b for a, b in zip(own.colour, other.colour, strict=True))
    return _Look(own.share, colour, *(weight * a + (1 - weight) * b for a, b in zip(own[2:], other[2:], strict=True)))


def _noise(grain: int, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Smooth noise float32[height, width] of about unit spread, with bumps `grain` pixels wide."""
    width, height = size
    coarse = random.normal(size=(height // grain + 2, width // grain + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, (2018, 1, 1, 0, 0, 0)), data)  # a fixed time: equal bytes every time
