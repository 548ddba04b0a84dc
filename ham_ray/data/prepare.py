"""From what a user names as data to an opened IMAGES table."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ham_ray import storage
from ham_ray.data.chunks import over_threads
from ham_ray.data.images import CARD, Images, open_images
from ham_ray.data.ingest import Progress, ingest
from ham_ray.data.sample import write_sample
from ham_ray.errors import UserError


def prepare(data: str, out: str, size: int, on_progress: Progress | None = None) -> Images:
    """Open the IMAGES table `data`, or ingest the archive `data` to `out`/images, once, and open that.

    Args:
        size: side of the stored images in pixels; a table has its own.
        on_progress: called with the images done and the images in all.

    Raises:
        UserError: there is nothing at `data`, or the archive is refused.
    """
    if storage.exists(storage.join(data, CARD)):
        return open_images(data)
    if storage.is_remote(data):
        raise UserError(
            f"--data {data}: no IMAGES table there; make it first: python jobs/ingest.py ARCHIVE --out {data}"
        )
    if not Path(data).exists():
        raise UserError(
            f"--data {data}: no such file or folder; give HAM10000's archive (zip or folder) or an IMAGES folder"
        )
    path = storage.join(out, "images", f"{Path(data).resolve().stem}-{size}")
    print(f"images: {data} is an archive, its IMAGES table is {path}")
    report = ingest(data, path, size, on_progress=on_progress)
    print(*report.lines, sep="\n", flush=True)
    return open_images(report.uri)


def prepare_sample(out: str, size: int) -> Images:
    """Make the IMAGES table of the built-in synthetic sample in `out`/images, once, and open it."""
    path = storage.join(out, "images", f"synthetic-{size}")
    if not storage.exists(storage.join(path, CARD)):
        with tempfile.TemporaryDirectory() as folder:
            archive = write_sample(Path(folder) / "synthetic.zip")
            ingest(archive, path, size, executor=over_threads)  # other nodes do not see this folder
    return open_images(path)
