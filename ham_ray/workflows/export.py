"""Export a trained model for other programs, and show that it agrees with the original.

Example:
    python jobs/export.py --model runs/NAME/FAMILY --to onnx --images pictures/

It takes uint8 RGB images of the model's size and gives a probability of each class, in the order that is printed;
preprocessing is inside. Calibration is not: see calibration.json beside the model.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ham_ray.command_line import Job, choice
from ham_ray.errors import UserError

if TYPE_CHECKING:
    from ham_ray.inference.saved import Saved

SUFFIXES = {"keras": ".keras", "savedmodel": "", "tflite": ".tflite", "onnx": ".onnx"}  # of files, by format
_PACKAGES = {"onnx": ("tf2onnx", "onnx", "onnxruntime")}  # that a format needs, and ham_ray does not


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of `jobs/export.py`."""

    model: Annotated[str, Option(help="run folder or .keras file")]
    to: Annotated[str, choice(tuple(SUFFIXES))]
    out: Annotated[str | None, Option(help="file, or folder for savedmodel; default model with the usual ending")] = (
        None
    )
    images: Annotated[str | None, Option(help="images to compare on; without them the synthetic sample")] = None

    def check(self) -> None:
        """Refuse what cannot be met.

        Raises:
            UserError: with the option, its value and the remedy.
        """
        from ham_ray import storage
        from ham_ray.workflows import checks

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
        """The model, described but not loaded."""
        from ham_ray.inference import saved

        return saved.find(self.model)

    @property
    def place(self) -> str:
        """The path of the exported file or folder."""
        from ham_ray import storage

        return storage.absolute(f"model{SUFFIXES[self.to]}" if self.out is None else self.out)


def run(options: Options) -> None:
    """Write the model, read it back, compare, and print how well it agrees.

    Raises:
        UserError: an option that cannot be met, or a model that does not agree.
    """
    options.check()
    from ham_ray.workflows.steps import exporting

    done = exporting.export(options)
    agreement = f"no probability of {done.images} images of {done.source} differs by more than {done.difference:.1e}"
    print(f"{done.place}: {agreement} (tolerated: {exporting.TOLERANCE:g})")


JOB = Job(Options, run, __doc__, "TensorFlow", "no file was written; the same command starts afresh")
