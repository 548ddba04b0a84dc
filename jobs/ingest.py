"""Make an IMAGES table from a HAM10000 or ISIC 2018 Task 3 archive: checked, resized, grouped by lesion, in five folds.

    python jobs/ingest.py ham10000.zip --out images/ham10000                 # Kaggle, Dataverse or ISIC; zip or folder
    python jobs/ingest.py sample.zip --out images/sample --sample            # draws a small synthetic archive first
    ray job submit --working-dir . -- python jobs/ingest.py /shared/ham10000.zip --out s3://bucket/images

Pictures: JPEG, PNG, BMP, GIF, TIFF, WebP, AVIF, JPEG 2000; HEIC with pip install 'ham_ray[heic]'. Others are listed.
Two cores: the 10,015 images at 600×450 take about 20 seconds. Killed, it goes on with the same command. On a cluster of
several nodes the work is spread over them.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ham_ray import console

if TYPE_CHECKING:
    from ham_ray.data.ingest import IngestReport


def main(
    archive: Annotated[str, typer.Argument(help="zip or folder, read in place; pictures of any usual format")],
    out: Annotated[str, typer.Option(help="folder or URI of the table")],
    size: Annotated[int, typer.Option(help="side of the stored images in pixels")] = 128,
    geometry: Annotated[str, typer.Option(help="crop: the centre square; squash: the whole, bent")] = "crop",
    layout: Annotated[str | None, typer.Option(help="kaggle, dataverse, isic2018, isic-cli or huggingface")] = None,
    max_quarantined: Annotated[float, typer.Option(help="greatest fraction of bad images")] = 0.01,
    max_lesion: Annotated[float, typer.Option(help="greatest fraction of images that are of one lesion")] = 0.01,
    sample: Annotated[bool, typer.Option(help="draw ARCHIVE first, where it does not exist")] = False,
) -> None:
    """Make the IMAGES table OUT from ARCHIVE."""
    given = locals()
    from ham_ray.options.ingest import Options  # here, so that --help is quick

    Options(**given).check()
    from ham_ray.cluster import connected
    from ham_ray.data.chunks import over_threads
    from ham_ray.data.ingest import ingest
    from ham_ray.data.sample import write_sample

    if sample and not Path(archive).exists():
        write_sample(archive)
    executor = over_threads if sample else None  # other nodes may not see what was drawn here
    started = time.perf_counter()
    with connected() if "RAY_ADDRESS" in os.environ else nullcontext(), console.progress("ingest") as told:
        report = ingest(archive, out, size, geometry, layout, max_quarantined, max_lesion, told, executor)
    _summarise(report, time.perf_counter() - started)


def _summarise(report: IngestReport, seconds: float) -> None:
    card = report.card
    print(*report.lines, sep="\n")
    print(f"{card['images']:,} images, {card['lesions']:,} lesions, {card['groups']:,} groups in {seconds:.1f} s")
    print(f"{report.uri} ({card['size']} px, {card['geometry']}, fingerprint {card['fingerprint'][:12]})")
    print(f"{card['licence']}\n{card['attribution']}")


if __name__ == "__main__":
    console.run(main, "pandas and Pillow", "finished images are kept; the same command goes on")
