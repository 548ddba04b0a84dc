"""Options of the ingest job, checked before Ray starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ham_ray import storage
from ham_ray.data.layouts import LAYOUTS
from ham_ray.data.pictures import GEOMETRIES
from ham_ray.errors import UserError, shown
from ham_ray.options import checks


@dataclass(frozen=True)
class Options:
    """The command line of `jobs/ingest.py`."""

    archive: str
    out: str
    size: int
    geometry: str
    layout: str | None
    max_quarantined: float
    max_lesion: float
    sample: bool

    def check(self) -> None:
        """Refuse what cannot be met.

        Raises:
            UserError: with the option, its value and the remedy.
        """
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
