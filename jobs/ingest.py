"""Make an IMAGES table from a HAM10000 or ISIC 2018 Task 3 archive: checked, resized, grouped by lesion, in five folds.

    python jobs/ingest.py ham10000.zip --out images/ham10000                 # Kaggle, Dataverse or ISIC; zip or folder
    python jobs/ingest.py sample.zip --out images/sample --sample            # draws a small synthetic archive first
    ray job submit --working-dir . -- python jobs/ingest.py /shared/ham10000.zip --out s3://bucket/images

Two cores: HAM10000 takes 10 to 30 seconds. Killed, it goes on with the same command.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ham_ray.data.ingest import IngestReport, ingest
from ham_ray.data.sample import write_sample
from ham_ray.errors import UserError


def main(
    archive: Annotated[str, typer.Argument(help="zip or folder, read in place")],
    out: Annotated[str, typer.Option(help="folder or URI of the table")],
    size: Annotated[int, typer.Option(help="side of the stored images in pixels")] = 128,
    geometry: Annotated[str, typer.Option(help="squash: the whole image; crop: its centre square")] = "squash",
    layout: Annotated[str | None, typer.Option(help="kaggle, dataverse or isic2018; default: found by looking")] = None,
    max_quarantined: Annotated[float, typer.Option(help="greatest fraction of bad images")] = 0.01,
    sample: Annotated[bool, typer.Option(help="draw ARCHIVE first, where it does not exist")] = False,
) -> None:
    """Make the IMAGES table OUT from ARCHIVE."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("images, {task.fields[rate]}"), TimeRemainingColumn())
    try:
        if sample and not Path(archive).exists():
            write_sample(archive)
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=None, rate="")

            def show(done: int, total: int) -> None:
                progress.update(bar, completed=done, total=total)
                progress.update(bar, rate=f"{progress.tasks[0].speed or 0:,.0f}/s")

            started = time.perf_counter()
            report = ingest(archive, out, size, geometry, layout, max_quarantined, show)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    _summarise(report, time.perf_counter() - started)


def _summarise(report: IngestReport, seconds: float) -> None:
    card = report.card
    bad = ", ".join(f"{count} {reason}" for reason, count in report.quarantined.items()) or "none"
    print(*(f"note: {note}" for note in report.notes), sep="\n")
    print(f"{card['images']:,} images, {card['lesions']:,} lesions, {card['groups']:,} groups in {seconds:.1f} s")
    print(f"quarantined: {bad}")
    print(f"{report.uri} ({card['size']} px, {card['geometry']}, fingerprint {card['fingerprint'][:12]})")
    print(f"{card['licence']}\n{card['attribution']}")


if __name__ == "__main__":
    typer.run(main)
