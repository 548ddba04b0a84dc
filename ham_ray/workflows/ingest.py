"""Make an IMAGES table from a HAM10000 or ISIC 2018 Task 3 archive: checked, resized, grouped by lesion, in five folds.

Examples:
    python jobs/ingest.py ham10000.zip --out images/ham10000
    python jobs/ingest.py sample.zip --out images/sample --sample  # synthetic
    ray job submit --working-dir . -- python jobs/ingest.py /shared/… --out s3://…

Archives: as Kaggle, the Harvard Dataverse, ISIC and Hugging Face have them, zip or folder.

Pictures: JPEG, PNG, BMP, GIF, TIFF, WebP, AVIF, JPEG 2000; HEIC with pip install 'ham_ray[heic]'. Others are listed.
Two cores: the 10,015 images at 600×450 take about 20 seconds. After an interruption the same command resumes. On a
cluster of several nodes the work is spread over them.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ham_ray import console
from ham_ray.command_line import Job, choice
from ham_ray.data.terms import GEOMETRIES, LAYOUTS
from ham_ray.errors import UserError, shown

if TYPE_CHECKING:
    from ham_ray.data.ingest import IngestReport


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `jobs/ingest.py`."""

    archive: Annotated[str, Argument(help="zip or folder, read in place; pictures of any usual format")]
    out: Annotated[str, Option(help="folder or URI of the table")]
    size: Annotated[int, Option(help="side of the stored images in pixels")] = 128
    geometry: Annotated[
        str, choice(GEOMETRIES, "crop takes the centre square, squash stretches the whole image to one")
    ] = "crop"
    layout: Annotated[str | None, choice(LAYOUTS, "by default recognised")] = None
    max_quarantined: Annotated[float, Option(help="greatest fraction of bad images")] = 0.01
    max_lesion: Annotated[float, Option(help="greatest fraction of images that are of one lesion")] = 0.01
    sample: Annotated[bool, Option(help="draw ARCHIVE first, where it does not exist")] = False

    def check(self) -> None:
        """Refuse what cannot be met.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        from ham_ray import storage
        from ham_ray.workflows import checks

        checks.size("--size", self.size)
        checks.choice("--geometry", self.geometry, GEOMETRIES)
        if self.layout is not None:
            checks.choice("--layout", self.layout, LAYOUTS)
        checks.number("--max-quarantined", self.max_quarantined, 0, 1)
        checks.number("--max-lesion", self.max_lesion, 0, 1)
        if storage.is_remote(self.archive):
            raise UserError(f"ARCHIVE {shown(self.archive)}: an address; copy it to a path that all nodes see")
        if self.sample and not Path(self.archive).exists():
            checks.out_file("ARCHIVE", self.archive)
        else:
            checks.there("ARCHIVE", self.archive, "HAM10000 as it was downloaded, zip or folder; --sample draws one")
        checks.out_folder("--out", self.out)


def run(options: Options) -> None:
    """Make the table, and print what is in it.

    Raises:
        UserError: an option that cannot be met, or an archive that is not fit for training.
    """
    options.check()
    from ham_ray.cluster import connected
    from ham_ray.data.chunks import over_threads
    from ham_ray.data.ingest import ingest
    from ham_ray.data.sample import write_sample

    if options.sample and not Path(options.archive).exists():
        write_sample(options.archive)
    executor = over_threads if options.sample else None  # other nodes may not see what was drawn here
    started = time.perf_counter()
    with connected() if "RAY_ADDRESS" in os.environ else nullcontext(), console.progress("ingest") as report_progress:
        report = ingest(
            options.archive,
            options.out,
            options.size,
            options.geometry,
            options.layout,
            options.max_quarantined,
            options.max_lesion,
            report_progress,
            executor,
        )
    _summarise(report, time.perf_counter() - started)


def _summarise(report: IngestReport, seconds: float) -> None:
    card = report.card
    print(*report.lines, sep="\n")
    print(f"{card['images']:,} images, {card['lesions']:,} lesions, {card['groups']:,} groups in {seconds:.1f} s")
    print(f"{report.uri} ({card['size']} px, {card['geometry']}, fingerprint {card['fingerprint'][:12]})")
    print(f"{card['licence']}\n{card['attribution']}")


JOB = Job(Options, run, __doc__, "pandas and Pillow", "finished images are kept; the same command goes on")
