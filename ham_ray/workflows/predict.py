"""Predict pictures by a trained model, or by several averaged: PREDICTIONS, a quarantine list and a manifest.

Examples:
    python jobs/predict.py --model runs/NAME/FAMILY --images pictures/ --out p.csv --format csv
    python jobs/predict.py --model runs/search-a --images h.zip --out p.parquet --tta
    ray job submit --working-dir . -- python jobs/predict.py --model s3://… --images /shared/… --out s3://…

Pictures: JPEG, PNG, BMP, GIF, TIFF, WebP, AVIF, JPEG 2000; HEIC with pip install 'ham_ray[heic]'. Others are listed.
100 to 200 images/s and network on two cores. After an interruption the same command resumes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ham_ray.command_line import Job, choice
from ham_ray.data.terms import GEOMETRIES
from ham_ray.errors import UserError
from ham_ray.workflows.shared import PRECISIONS, Precision

if TYPE_CHECKING:
    from ham_ray.data.gallery import Gallery
    from ham_ray.inference.saved import Saved

FORMATS = ("parquet", "csv", "isic")
DEFAULT_GEOMETRY = "crop"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `jobs/predict.py`."""

    models: Annotated[
        list[str],
        Option("--model", help="run folder, finished search or .keras file; of several, probabilities are averaged"),
    ]
    images: Annotated[str, Option(help="IMAGES table, HAM10000 or ISIC archive, or any folder or zip of pictures")]
    out: Annotated[str, Option(help="file to write, path or URI")]
    format: Annotated[str, choice(FORMATS, "isic: for the challenge's scorer")] = "parquet"
    tta: Annotated[
        bool, Option("--tta", help="test-time augmentation: average over the eight symmetries of each image")
    ] = False
    raw: Annotated[bool, Option("--raw", help="do not apply the calibration stored with the model")] = False
    batch_size: Annotated[int, Option(help="images a forward pass")] = 128
    precision: Precision = "auto"
    geometry: Annotated[
        str | None, choice(GEOMETRIES, f"where no run beside the model records it; default {DEFAULT_GEOMETRY}")
    ] = None

    def check(self) -> None:
        """Refuse what cannot be met whatever the cluster is.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        from ham_ray.workflows import checks

        checks.choice("--format", self.format, FORMATS)
        checks.choice("--precision", self.precision, PRECISIONS)
        checks.whole("--batch-size", self.batch_size, 1, 2**16)
        if self.geometry is not None:
            checks.choice("--geometry", self.geometry, GEOMETRIES)
        checks.out_file("--out", self.out)
        for path in self.models:
            checks.there("--model", path, "a run folder, a finished search or a .keras file")
        checks.there("--images", self.images, "an IMAGES table, an archive, or a folder or zip of pictures")
        _ = self.gallery

    @cached_property
    def found(self) -> list[Saved]:
        """The models, described but not loaded."""
        from ham_ray.inference import saved

        return [saved.find(path) for path in self.models]

    @cached_property
    def pixels(self) -> tuple[int, str]:
        """The greatest of the models' sizes, and the geometry that all of them share."""
        models, asked = self.found, self.geometry
        known = {model.geometry for model in models if model.geometry}
        if asked and known - {asked}:
            raise UserError(f"--geometry {asked}: the model was trained on images made by {', '.join(sorted(known))}")
        if len(known) > 1:
            raise UserError(f"the models take images of different geometry: {', '.join(sorted(known))}")
        return max(model.size for model in models), asked or (known.pop() if known else DEFAULT_GEOMETRY)

    @cached_property
    def gallery(self) -> Gallery:
        """The images to be predicted, listed."""
        from ham_ray.data.gallery import open_gallery

        result = open_gallery(self.images, *self.pixels)
        for model in self.found:
            result.at(model.size)  # a table has one size
        return result


def run(options: Options) -> None:
    """Predict what is not predicted yet, and print what came of it.

    Raises:
        UserError: an option that cannot be met, or not one image that could be read.
    """
    options.check()
    from ham_ray.cluster import connected
    from ham_ray.workflows.steps import predicting

    with connected():
        manifest = predicting.run(options)
    predicting.show(manifest, options.out)


JOB = Job(Options, run, __doc__, "Ray and TensorFlow", "what was predicted is kept; the same command goes on")
