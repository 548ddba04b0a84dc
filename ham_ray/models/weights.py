"""Starting weights: `imagenet` (Keras's own download), `none`, or a file; each checked, with its reason."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

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


MAX_BYTES = 4 << 30
RANDOM = Weights("random (none)")


def resolve_weights(spec: str) -> Weights:
    """`imagenet`, `none`, or a `.h5` file's path or URI, read once so that workers on any node get the same bytes.

    Raises:
        UserError: the download failed, or there is no such file.
    """
    if spec == "none":
        return RANDOM
    return _download() if spec == "imagenet" else _read(spec)


def load_backbone(model: keras.Model, weights: Weights) -> None:
    """Load the weights into a backbone (a `keras.Model` without top).

    Raises:
        UserError: the file's layers or shapes are not this backbone's, or its weights are not all finite.
    """
    if weights.content is None:
        return
    before = _kernels(model)
    with tempfile.NamedTemporaryFile(suffix=weights.suffix) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of what it skips; the check below refuses it
        file.write(weights.content)
        file.flush()
        try:
            model.load_weights(file.name)
        except Exception as error:  # of another's or a damaged file Keras raises whatever it runs into
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"weights {weights.name} do not fit {model.name} without top: {reason}") from None
    skipped = [path for path, kernel in _kernels(model).items() if np.array_equal(kernel, before[path])]
    if skipped:
        raise UserError(
            f"weights {weights.name} do not fit {model.name} without top: they leave {len(skipped)} of {len(before)} "
            f"kernels as they were, the first {skipped[0]}"
        )
    if broken := [variable.path for variable in model.variables if not np.isfinite(variable.numpy()).all()]:
        raise UserError(
            f"weights {weights.name} are of no use: {len(broken)} arrays are not all finite (NaN or infinity), first "
            f"{broken[0]}"
        )


def _kernels(model: keras.Model) -> dict[str, np.ndarray]:
    return {variable.path: variable.numpy() for variable in model.variables if len(variable.shape) > 1}


def _read(spec: str) -> Weights:
    name = Path(spec.partition("?")[0]).name
    suffix = ".weights.h5" if name.endswith(".weights.h5") else ".h5"
    if not storage.exists(spec):
        raise UserError(f"--weights: no file {spec!r}; give imagenet, none, or the path of a ResNet50 no-top .h5 file")
    if not name.endswith(".h5"):
        raise UserError(f"--weights: {spec!r} is not a .h5 file (Keras weights without top)")
    return Weights(name, storage.read_limited(spec, MAX_BYTES, "--weights"), suffix)


def _download() -> Weights:
    print("weights: imagenet, from Keras's cache or its server", flush=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # Keras sets none: a network that drops packets would hold it for minutes
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras prints its server's address and its own bar
            model = keras.applications.ResNet50(include_top=False, weights="imagenet")
    except Exception as error:  # whatever the network raises: get_file wraps it differently by cause
        reason = str(error).strip().rpartition(" -- ")[2].splitlines()[0][:120]  # get_file: "URL … -- cause"
        raise UserError(
            f"--weights imagenet: Keras could not download ResNet50's weights ({reason}); "
            "give a downloaded no-top .h5 file with --weights FILE, or --weights none for random ones"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imagenet.weights.h5"
        model.save_weights(path)
        return Weights("imagenet", path.read_bytes(), ".weights.h5")
