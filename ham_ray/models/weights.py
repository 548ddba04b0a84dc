"""Starting weights: `imagenet` (Keras's own download), `none`, or a file; each checked, with its reason."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ham_ray import storage
from ham_ray.errors import UserError


@dataclass(frozen=True)
class Weights:
    """Starting weights as a file's content (None = random initialisation). `name` is what tables and reports show."""

    name: str
    content: bytes | None = None
    suffix: str = ""

    @property
    def sha256(self) -> str | None:
        """Of the file's content, in hex; None for random weights."""
        return hashlib.sha256(self.content).hexdigest() if self.content is not None else None


RANDOM = Weights("random (none)")


def resolve_weights(spec: str) -> Weights:
    """`imagenet`, `none`, or a `.h5` file's path or URI, read once so that workers on any node get the same bytes.

    Raises:
        UserError: the download failed, or there is no such file.
    """
    if spec == "none":
        return RANDOM
    return _download() if spec == "imagenet" else _read(spec)


def load_backbone(model, weights: Weights) -> None:
    """Load the weights into a backbone (a `keras.Model` without top).

    Raises:
        UserError: the file's layers or shapes are not this backbone's.
    """
    if weights.content is None:
        return
    with tempfile.NamedTemporaryFile(suffix=weights.suffix) as file:
        file.write(weights.content)
        file.flush()
        try:
            model.load_weights(file.name)
        except (ValueError, OSError, KeyError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"weights {weights.name} do not fit {model.name} without top: {reason}") from None


def _read(spec: str) -> Weights:
    name = Path(spec.partition("?")[0]).name
    suffix = ".weights.h5" if name.endswith(".weights.h5") else ".h5"
    if not storage.exists(spec):
        raise UserError(f"--weights: no file {spec!r}; give imagenet, none, or the path of a ResNet50 no-top .h5 file")
    if not name.endswith(".h5"):
        raise UserError(f"--weights: {spec!r} is not a .h5 file (Keras weights without top)")
    return Weights(name, storage.read_bytes(spec), suffix)


def _download() -> Weights:
    import keras

    try:
        model = keras.applications.ResNet50(include_top=False, weights="imagenet")
    except Exception as error:  # whatever the network raises: get_file wraps it differently by cause
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError(
            f"--weights imagenet: Keras could not download ResNet50's weights ({reason}); "
            "give a downloaded no-top .h5 file with --weights FILE, or --weights none for random ones"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imagenet.weights.h5"
        model.save_weights(path)
        return Weights("imagenet", path.read_bytes(), ".weights.h5")
