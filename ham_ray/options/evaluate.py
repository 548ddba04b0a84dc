"""Options of the evaluation job, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from ham_ray.errors import UserError
from ham_ray.options import checks

BOTH, ALL = "both", "all"
PARTS = {"test": "its test images", "new": "images new to it"}  # of a table's labelled images; in words


@dataclass(frozen=True)
class Options:
    """The command line of `jobs/evaluate.py`."""

    predictions: list[str]
    truth: str | None
    raw: bool
    images: str | None
    out: str
    split: str = BOTH

    def check(self) -> None:
        """Refuse what cannot be met.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        if not self.predictions:
            raise UserError("--predictions: name at least one table")
        checks.choice("--split", self.split, (*PARTS, ALL, BOTH))
        for place in self.predictions:
            checks.file("--predictions", place, "a table as jobs/predict.py writes it, Parquet or CSV")
        if self.truth is not None:
            checks.there("--truth", self.truth, "an archive, an IMAGES table, or a file of diagnoses")
        if self.images is not None:
            checks.there("--images", self.images, "an IMAGES table, an archive, or a folder or zip of pictures")
        checks.out_folder("--out", self.out)
