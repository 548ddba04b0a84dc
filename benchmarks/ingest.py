"""Speed and memory of ingest, beside a plain two-thread Pillow loop over the same files.

    python benchmarks/ingest.py                                  # the drawn sample, half a minute
    python benchmarks/ingest.py ham10000.zip --images 10000      # a real archive, cycled through up to that many images

The plain loop reads, decodes (reduced as well), resizes and encodes as ingest does, and keeps nothing else; ingest also
checks, hashes, groups, deals folds and writes the table. Rounds are interleaved in one process. Peak memory is that of
fresh processes for N and 2N images.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from PIL import Image, ImageOps

from ham_ray.data import archives, layouts
from ham_ray.data.ingest import ingest
from ham_ray.data.sample import write_sample

_MEASURE_MEMORY = (
    "import sys, pathlib; from ham_ray.data.ingest import ingest; "
    "ingest(sys.argv[1], sys.argv[2], size=int(sys.argv[3])); "
    "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
)


def main(
    archive: Annotated[str | None, typer.Argument(help="default: the drawn sample")] = None,
    images: Annotated[int, typer.Option(help="images a round; 2N for the memory figure")] = 2000,
    rounds: Annotated[int, typer.Option(help="rounds of each")] = 5,
    size: Annotated[int, typer.Option(help="pixels")] = 128,
) -> None:
    """Print images/s of both, their ratio, and peak memory for half and all of the images."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = archive or str(write_sample(folder / "sample.zip"))
        whole = _cycled(source, folder / "whole.zip", images)
        half = _cycled(source, folder / "half.zip", images // 2)
        print(
            f"{Path(source).name}, {images} images to {size} px; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        _plain(half, size), ingest(half, folder / "warm-up", size)
        plain, ours = [], []
        for turn in range(rounds):
            plain.append(_seconds(_plain, whole, size))
            ours.append(_seconds(ingest, whole, folder / f"images-{turn}", size))
        for unit, column in (("images/s", 0), ("images/s of CPU time", 1)):
            rates = [[images / seconds[column] for seconds in both] for both in (plain, ours)]
            print(f"{unit}: minimum, median, maximum of {rounds} rounds")
            print(f"  plain  {_spread(rates[0], '7.0f')}\n  ingest {_spread(rates[1], '7.0f')}")
            print(f"  ratio  {_spread([b / a for a, b in zip(*rates, strict=True)], '7.2f')}")
        memory = [_peak_memory(path, folder / f"{path.stem}-memory", size) for path in (half, whole)]
        print(f"peak memory {memory[0]} MiB for {images // 2} images, {memory[1]} MiB for {images}")


def _seconds(function: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Measure wall time, and CPU time of all threads: the second tells more on a machine that others use as well."""
    start, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - start, time.process_time() - cpu


def _spread(values: list[float], form: str) -> str:
    return " ".join(f"{value:{form}}" for value in (min(values), statistics.median(values), max(values)))


def _plain(path: Path, size: int) -> list[bytes]:
    """Do what one writes in ten lines: two threads over the zip's images."""
    with zipfile.ZipFile(path) as archive, ThreadPoolExecutor(2) as pool:

        def one(name: str) -> bytes:
            image = Image.open(io.BytesIO(archive.read(name)))
            image.draft("RGB", (size, size))
            buffer = io.BytesIO()
            small = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
            small.save(buffer, "WEBP", lossless=True, quality=0, method=0)
            return buffer.getvalue()

        return list(pool.map(one, [name for name in archive.namelist() if name.endswith(".jpg")]))


def _cycled(source: str, path: Path, images: int) -> Path:
    """Write an archive of that many images in Kaggle's layout: the source's, again and again under new ids."""
    opened = layouts.open_archive(source)
    rows = opened.metadata[opened.metadata["image_id"].isin(list(opened.images))]
    rows = rows.iloc[[place % len(rows) for place in range(images)]].reset_index(drop=True)
    turn = pd.Series(range(images)) // len(opened.images)
    with zipfile.ZipFile(path, "w") as archive:
        for place, image_id in enumerate(rows["image_id"]):
            archive.writestr(f"images/{_name(place)}.jpg", archives.read(opened.images[image_id][0]))
        rows["image_id"] = [_name(place) for place in range(images)]
        rows["lesion_id"] = rows["lesion_id"] + "_" + turn.astype(str)
        archive.writestr("HAM10000_metadata.csv", rows.drop(columns=["partition", "file"]).to_csv(index=False))
    return path


def _name(place: int) -> str:
    return f"BENCH_{place:07d}"


def _peak_memory(path: Path, out: Path, size: int) -> int:
    """Measure the MiB of a fresh process that ingests the archive (Linux; getrusage would count the parent as well)."""
    command = [sys.executable, "-c", _MEASURE_MEMORY, str(path), str(out), str(size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) // 1024


if __name__ == "__main__":
    typer.run(main)
