"""A small archive of drawn lesions in the layout of a data set: to try everything where the data are not at hand.

The classes differ in colour, shape and texture and overlap, so that a model can learn them and still be wrong. The
drawings have no medical meaning; the archive holds `SYNTHETIC.txt`, and all that is made from it says so.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from ham_ray import storage
from ham_ray.data import datasets
from ham_ray.data.dataset import Dataset, Look, Sample
from ham_ray.data.layouts import SYNTHETIC_MARKER, SYNTHETIC_PREFIX

_LEAST_LESIONS = 10  # of a class: two a fold
_IMAGES_A_LESION = (0.74, 0.19, 0.07)  # shares of lesions with 1, 2 and 3 images, as in HAM10000


_SITES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "unknown")


def write_sample(
    path: str | Path,
    lesions: int = 330,
    seed: int = 0,
    size: tuple[int, int] = (200, 150),
    dataset: Dataset = datasets.DEFAULT,
) -> Path:
    """Write the archive (a zip of some 1.3 images a lesion, `size` = width × height in pixels) and return its path.

    Equal arguments give equal bytes under the same NumPy and Pillow. Each class has at least ten lesions, or its
    equal part of them where `lesions` is too few for that; the rest follows the shares of the data set.
    """
    random = np.random.default_rng(seed)
    sample = dataset.sample
    rows: list[dict[str, str]] = []
    with storage.writing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for lesion, dx in enumerate(_diagnoses(sample, lesions, random)):
            facts = {"dx": dx, "dx_type": "synthetic", **_patient(random)}
            shape = random.normal(size=32)
            for _ in range(random.choice(3, p=_IMAGES_A_LESION) + 1):
                image_id = f"{SYNTHETIC_PREFIX}{len(rows):06d}"
                picture = _draw(_blend(sample, dx, 0.75 + 0.3 * shape[23]), shape, size, random)
                _add(archive, sample.picture(len(rows), image_id, dx), picture)
                rows.append({"lesion_id": f"DRAWN_{lesion:06d}", "image_id": image_id, **facts})
        for name, content in sample.metadata(rows).items():
            _add(archive, name, content)
        _add(archive, SYNTHETIC_MARKER, b"Drawn by ham_ray.data.sample. No photographs, no medical meaning.\n")
    return Path(path)


def _diagnoses(sample: Sample, lesions: int, random: np.random.Generator) -> list[str]:
    """Return the class of each lesion, in random order."""
    least = min(_LEAST_LESIONS, lesions // len(sample.looks))
    counts = {dx: max(least, round(look.share * lesions)) for dx, look in sample.looks.items() if dx != sample.common}
    counts[sample.common] = max(least, lesions - sum(counts.values()))
    names = [dx for dx in sample.looks for _ in range(counts[dx])]
    return [names[number] for number in random.permutation(len(names))]


def _patient(random: np.random.Generator) -> dict[str, str]:
    age = "" if random.random() < 0.02 else f"{5.0 * random.integers(4, 17)}"
    return {"age": age, "sex": str(random.choice(["male", "female"])), "localization": str(random.choice(_SITES))}


def _draw(look: Look, shape: np.ndarray, size: tuple[int, int], random: np.random.Generator) -> bytes:
    """Draw a JPEG of a lesion: `shape` (32 normal numbers) is the lesion's own, the rest is the image's."""
    width, height = size
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


def _blend(sample: Sample, dx: str, purity: float) -> Look:
    """Mix a class's look with that of the most frequent class: the lower the purity, the harder to tell apart."""
    weight = float(np.clip(purity, 0, 1))
    own, other = sample.looks[dx], sample.looks[sample.common]
    colour = tuple(weight * a + (1 - weight) * b for a, b in zip(own.colour, other.colour, strict=True))
    return Look(own.share, colour, *(weight * a + (1 - weight) * b for a, b in zip(own[2:], other[2:], strict=True)))


def _noise(grain: int, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Draw smooth noise float32[height, width] of about unit spread, with bumps `grain` pixels wide."""
    width, height = size
    coarse = random.normal(size=(height // grain + 2, width // grain + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, (2018, 1, 1, 0, 0, 0)), data)  # a fixed time: equal bytes every time
