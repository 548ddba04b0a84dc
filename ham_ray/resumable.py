"""Long work kept in parts: files in a work folder, each written whole, from which a later start goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ham_ray import storage

UNOPENED = "cannot be opened"  # the reason of an image whose file was not read: the next start tries it again
Run = Callable[[Sequence[int]], Iterator[tuple[int, pa.Table]]]  # numbers of parts to their tables, in any order


class Parts:
    """The part files in a work folder.

    Parts of another source or other options, and those with images that could not be opened, are deleted at the start.
    """

    def __init__(self, folder: Path, identity: dict[str, object], schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema
        marker = folder / "source.json"
        if not marker.exists() or json.loads(marker.read_bytes()) != identity:
            for entry in [*folder.glob("part-*"), *folder.glob(".*.part*")]:
                entry.unlink()
            storage.write_bytes(marker, json.dumps(identity, indent=1).encode())
        for again in folder.glob("part-*.again"):
            again.with_suffix(".arrow").unlink(missing_ok=True)
            again.unlink()

    def path(self, number: int) -> Path:
        """Return the path where that part is, or will be."""
        return self.folder / f"part-{number:05d}.arrow"

    def fill(self, images: Mapping[int, int], run: Run, on_progress: Callable[[int, int], None]) -> None:
        """Make the missing parts; `on_progress(images done, images in all)` is called after each.

        Args:
            images: how many images each part is made of, by its number.
            run: makes the parts of the numbers it is called with.
        """
        total = sum(images.values())
        missing = [number for number in images if not self.path(number).exists()]
        done = total - sum(images[number] for number in missing)
        on_progress(done, total)
        for number, table in run(missing):
            if pc.any(pc.equal(table["reason"], UNOPENED)).as_py():
                self.path(number).with_suffix(".again").touch()  # before the part itself: good for this start only
            with storage.writing(self.path(number)) as temporary, pa.ipc.new_file(temporary, self.schema) as writer:
                writer.write_table(table)
            done += images[number]
            on_progress(done, total)

    def read(self, numbers: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read these parts one after the other, only these columns."""
        options = pa.ipc.IpcReadOptions(included_fields=[self.schema.get_field_index(name) for name in columns])
        for number in numbers:
            with pa.OSFile(str(self.path(number))) as file:
                yield pa.ipc.open_file(file, options=options).read_all()

    def take(self, places: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Read single rows, by part and row in it, int[n, 2], in that order; no others are read from the disk."""
        options = pa.ipc.IpcReadOptions(included_fields=[self.schema.get_field_index(name) for name in columns])
        tables = []
        for number in np.unique(places[:, 0]):
            with pa.memory_map(str(self.path(number))) as file:
                part = pa.ipc.open_file(file, options=options).read_all()
                tables.append(part.take(places[places[:, 0] == number, 1]))
        by_part = np.argsort(places[:, 0], kind="stable")
        return pa.concat_tables(tables).take(np.argsort(by_part))


def work_path(target: str) -> Path:
    """Return where the work on `target` is kept: beside it, or among temporary files where it is on an object store."""
    if not storage.is_remote(target):
        return Path(f"{target}.partial")
    return Path(tempfile.gettempdir(), f"ham_ray-{hashlib.sha256(target.encode()).hexdigest()[:12]}.partial")


@contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """Lock the folder for parts against a second process; delete it afterwards, but if the block raises, parts stay.

    Raises:
        UserError: another process is at work there.
    """
    with storage.locked(str(path)):
        done = False
        try:
            yield path
            done = True
        finally:
            if done or not any(path.glob("part-*")):
                shutil.rmtree(path)
