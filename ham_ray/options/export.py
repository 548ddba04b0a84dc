"""Options of the export job, checked before TensorFlow starts."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property

from ham_ray import storage
from ham_ray.errors import UserError
from ham_ray.options import checks
from ham_ray.prediction import saved
from ham_ray.prediction.saved import Saved

SUFFIXES = {"keras": ".keras", "savedmodel": "", "tflite": ".tflite", "onnx": ".onnx"}  # of files, by format
_PACKAGES = {"onnx": ("tf2onnx", "onnx", "onnxruntime")}  # that a format needs, and ham_ray does not


@dataclass(frozen=True)
class Options:
    """The command line of `jobs/export.py`."""

    model: str
    to: str
    out: str | None
    images: str | None

    def check(self) -> None:
        """Refuse what cannot be met.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        checks.choice("--to", self.to, SUFFIXES)
        missing = [name for name in _PACKAGES.get(self.to, ()) if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"--to {self.to} needs what is not installed: pip install {' '.join(missing)} (or ham_ray's extra "
                f"{self.to!r})"
            )
        if storage.is_remote(self.place):
            raise UserError(f"--out {self.out}: an address; give a local path")
        checks.out_new("--out", self.place if self.out is None else self.out)
        checks.there("--model", self.model, "a run folder or a .keras file")
        if self.images is not None:
            checks.there("--images", self.images, "an IMAGES table, an archive, or a folder or zip of pictures")
        if len(self.found.members) > 1:
            members = ", ".join(self.found.members)
            count = len(self.found.members)
            raise UserError(f"--model {self.model}: an average of {count} networks; export one of them: {members}")

    @cached_property
    def found(self) -> Saved:
        """The model, described."""
        return saved.find(self.model)

    @property
    def place(self) -> str:
        """The path of the exported file or folder."""
        return storage.absolute(f"model{SUFFIXES[self.to]}" if self.out is None else self.out)
