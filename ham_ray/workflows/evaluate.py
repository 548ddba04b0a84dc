"""Evaluate tables of predictions, of any model from anywhere: one by itself, or several compared on the same images.

Examples:
    python jobs/evaluate.py --predictions a.parquet --out report/
    python jobs/evaluate.py --predictions a.parquet b.csv --truth metadata.csv

Takes Parquet or CSV as jobs/predict.py writes it, and the ISIC challenge's CSV with --truth. Writes a page, numbers and
a model card, in seconds, without Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import Argument, Option

from ham_ray.command_line import Job, choice
from ham_ray.errors import UserError

BOTH, ALL = "both", "all"
PARTS = {"test": "its test images", "new": "images new to it"}  # of a table's labelled images; in words
SPLITS = (*PARTS, ALL, BOTH)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `jobs/evaluate.py`."""

    predictions: Annotated[
        list[str], Option(help="tables of predictions; of several, the first is compared with each other one")
    ]
    truth: Annotated[
        str | None, Option(help="archive, IMAGES table, metadata or ground-truth file with the diagnoses")
    ] = None
    raw: Annotated[bool, Option("--raw", help="evaluate the probabilities before calibration")] = False
    images: Annotated[
        str | None, Option(help="IMAGES table, archive or folder: thumbnails of the confident errors")
    ] = None
    out: Annotated[str, Option(help="folder for report.html, metrics.json and model_card.md")] = "report"
    split: Annotated[str, choice(SPLITS, "the labelled images to report; all: as one result, both: each by itself")] = (
        BOTH
    )
    more: Annotated[list[str] | None, Argument(metavar="PREDICTIONS", help="further tables")] = None

    @property
    def tables(self) -> list[str]:
        """All tables of predictions, in the order in which they are compared."""
        return [*self.predictions, *(self.more or [])]

    def check(self) -> None:
        """Refuse what cannot be met.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        from ham_ray.workflows import checks

        if not self.tables:
            raise UserError("--predictions: name at least one table")
        checks.choice("--split", self.split, SPLITS)
        for path in self.tables:
            checks.file("--predictions", path, "a table as jobs/predict.py writes it, Parquet or CSV")
        if self.truth is not None:
            checks.there("--truth", self.truth, "an archive, an IMAGES table, or a file of diagnoses")
        if self.images is not None:
            checks.there("--images", self.images, "an IMAGES table, an archive, or a folder or zip of pictures")
        checks.out_folder("--out", self.out)


def run(options: Options) -> None:
    """Write the report, and print its table.

    Raises:
        UserError: an option that cannot be met, or a table that cannot be evaluated.
    """
    options.check()
    from ham_ray.report import summary
    from ham_ray.workflows.steps import evaluating

    summary.show(evaluating.run(options))
    out = options.out
    print(f"report: {out}/report.html; numbers: {out}/metrics.json; model card: {out}/model_card.md")


JOB = Job(Options, run, __doc__, "pandas and scikit-learn", "the same command starts afresh")
