"""Options of the prediction job, checked before Ray and TensorFlow start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ham_ray.data.gallery import Gallery, open_gallery
from ham_ray.data.pictures import GEOMETRIES
from ham_ray.errors import UserError
from ham_ray.options import checks
from ham_ray.prediction import saved
from ham_ray.prediction.saved import Saved

FORMATS = ("parquet", "csv", "isic")
DEFAULT_GEOMETRY = "crop"


@dataclass(frozen=True)
class Options:
    """The command line of `jobs/predict.py`."""

    models: list[str]
    images: str
    out: str
    format: str
    tta: bool
    raw: bool
    batch_size: int
    precision: str
    geometry: str | None

    def check(self) -> None:
        """Refuse what cannot be met whatever the cluster is.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        checks.choice("--format", self.format, FORMATS)
        checks.choice("--precision", self.precision, checks.PRECISIONS)
        checks.whole("--batch-size", self.batch_size, 1, 2**16)
        if self.geometry is not None:
            checks.choice("--geometry", self.geometry, GEOMETRIES)
        checks.out_file("--out", self.out)
        for place in self.models:
            checks.there("--model", place, "a run folder, a finished search or a .keras file")
        checks.there("--images", self.images, "an IMAGES table, an archive, or a folder or zip of pictures")
        _ = self.gallery

    @cached_property
    def found(self) -> list[Saved]:
        """The models, described."""
        return [saved.find(place) for place in self.models]

    @cached_property
    def pixels(self) -> tuple[int, str]:
        """Size and geometry, which all models must share."""
        models, asked = self.found, self.geometry
        sizes = {model.name: model.size for model in models}
        if len(set(sizes.values())) > 1:
            each = ", ".join(f"{name} {size} px" for name, size in sizes.items())
            raise UserError(f"the models take images of different sizes: {each}; predict with each by itself")
        known = {model.geometry for model in models if model.geometry}
        if asked and known - {asked}:
            raise UserError(f"--geometry {asked}: the model was trained on images made by {', '.join(sorted(known))}")
        if len(known) > 1:
            raise UserError(f"the models take images of different geometry: {', '.join(sorted(known))}")
        return models[0].size, asked or (known.pop() if known else DEFAULT_GEOMETRY)

    @cached_property
    def gallery(self) -> Gallery:
        """The images to be predicted, listed."""
        return open_gallery(self.images, *self.pixels)
