"""How stored images should be encoded: fidelity, bytes and speed of each candidate, on one thread.

python benchmarks/encoding.py                        # the drawn sample
python benchmarks/encoding.py ham10000.zip           # a real archive, 400 images spread over it
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL
import typer
from PIL import Image

from ham_ray.data import archives, layouts, pictures
from ham_ray.data.sample import write_sample

CANDIDATES: dict[str, dict[str, Any]] = {
    "JPEG 90 4:4:4": {"format": "JPEG", "quality": 90, "subsampling": 0},
    "JPEG 95 4:4:4": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "JPEG 98 4:4:4": {"format": "JPEG", "quality": 98, "subsampling": 0},
    "WebP 90": {"format": "WEBP", "quality": 90},
    "WebP lossless, fastest": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
    "WebP lossless, default": {"format": "WEBP", "lossless": True},
    "PNG level 1": {"format": "PNG", "compress_level": 1},
    "PNG level 6": {"format": "PNG", "compress_level": 6},
    "PNG uncompressed": {"format": "PNG", "compress_level": 0},
    "raw (PPM)": {"format": "PPM"},
}


def main(
    archive: Annotated[str | None, typer.Argument(help="default: the drawn sample")] = None,
    images: Annotated[int, typer.Option(help="how many, spread over the archive")] = 400,
    size: Annotated[int, typer.Option(help="pixels")] = 128,
    rounds: Annotated[int, typer.Option(help="the best of so many counts")] = 5,
) -> None:
    """Print a Markdown table: a row a candidate, and how far reduced decoding is from the full one."""
    with tempfile.TemporaryDirectory() as temporary:
        source = archive or str(write_sample(Path(temporary, "sample.zip")))
        files = _spread(source, images)
    pixels = [pictures.resized(data, size, "squash") for data in files]
    print(f"{Path(source).name}, {len(files)} images at {size} px, Pillow {PIL.__version__}")
    print("\n| encoding | PSNR dB | largest error | bytes | encode/s | decode/s |\n|---|---|---|---|---|---|")
    for name, options in CANDIDATES.items():
        print(_row(name, options, pixels, rounds))
    full = [_fully_decoded(data, size) for data in files]
    psnr, worst = _fidelity(full, [np.asarray(image) for image in pixels])
    print(f"\nreduced JPEG decoding against the full one, after resizing: PSNR {psnr:.1f} dB, largest error {worst}")


def _spread(source: str, count: int) -> list[bytes]:
    opened = layouts.open_archive(source)
    names = sorted(opened.images)
    return [archives.read(opened.images[name][0]) for name in names[:: max(1, len(names) // count)][:count]]


def _row(name: str, options: dict[str, Any], images: list[Image.Image], rounds: int) -> str:
    encode_seconds, decode_seconds = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        encoded = [_encode(image, options) for image in images]
        middle = time.perf_counter()
        decoded = [_decode(data) for data in encoded]
        encode_seconds.append(middle - start)
        decode_seconds.append(time.perf_counter() - middle)
    psnr, worst = _fidelity([np.asarray(image) for image in images], decoded)
    size = sum(map(len, encoded)) / len(encoded)
    rates = [len(images) / min(seconds) for seconds in (encode_seconds, decode_seconds)]
    fidelity = f"{psnr:.1f}" if worst else "exact"
    return f"| {name} | {fidelity} | {worst} | {size:,.0f} | {rates[0]:,.0f} | {rates[1]:,.0f} |"


def _encode(image: Image.Image, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _decode(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _fully_decoded(data: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def _fidelity(wanted: list[np.ndarray], given: list[np.ndarray]) -> tuple[float, int]:
    """Return PSNR in dB over all pixels, and the largest difference in grey levels."""
    errors = np.stack(wanted).astype(np.int32) - np.stack(given)
    power = float(np.mean(errors**2))
    return (10 * np.log10(255**2 / power) if power else np.inf), int(np.abs(errors).max())


if __name__ == "__main__":
    typer.run(main)
