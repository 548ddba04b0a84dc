"""Starting weights: `imagenet` (Keras's own download), `none`, or a file; each checked, with its reason."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from ham_ray import storage
from ham_ray.errors import UserError
from ham_ray.models.architecture import Architecture


@dataclass(frozen=True)
class Weights:
    """Starting weights as a file's content (None = random initialisation). `name` is what tables and reports show."""

    name: str
    content: bytes | None = None
    suffix: str = ""

    @property
    def sha256(self) -> str | None:
        """The sha256 of the file's content, in hex; None for random weights."""
        return hashlib.sha256(self.content).hexdigest() if self.content is not None else None


MAX_BYTES = 4 << 30
RANDOM = Weights("random (none)")


def resolve_weights(source: str, architecture: Architecture) -> Weights:
    """Read the weights that `source` names: `imagenet`, `none`, or the path or URI of a `.h5` file.

    They are read once, so that workers on any node get the same bytes.

    Raises:
        UserError: the download failed or has other layers; there is no such file, or it is no `.h5` file or too large.
    """
    if source == "none":
        return RANDOM
    return _download(architecture) if source == "imagenet" else _read(source, architecture)


def load_backbone(model: keras.Model, weights: Weights, load: Callable[[keras.Model, str], None] | None = None) -> None:
    """Load the weights into a backbone (a `keras.Model` without top), by `load` where its files are of another kind.

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
            (load or keras.Model.load_weights)(model, file.name)
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


def _read(spec: str, architecture: Architecture) -> Weights:
    name = Path(spec.partition("?")[0]).name
    suffix = ".weights.h5" if name.endswith(".weights.h5") else ".h5"
    if not storage.exists(spec):
        raise UserError(f"--weights: no file {spec!r}; give imagenet, none, or the path of {_file(architecture)}")
    if not name.endswith(".h5"):
        raise UserError(f"--weights: {spec!r} is not a .h5 file (Keras weights without top)")
    return Weights(name, storage.read_limited(spec, MAX_BYTES, "--weights"), suffix)


def _file(architecture: Architecture) -> str:
    assert architecture.pretrained is not None
    return architecture.pretrained.file


def _download(architecture: Architecture) -> Weights:
    """Download Keras's own weights, by way of Keras's own network, which must have the layers that ours has.

    Some of Keras's networks have other layers with these weights than without: every kernel of such a file would fit
    the wrong one.
    """
    remedy = f"give {_file(architecture)} with --weights {architecture.name}=FILE, or --weights none for random ones"
    if architecture.pretrained is None or architecture.pretrained.download is None:
        raise UserError(f"--weights imagenet: {architecture.name} has no weights to download; {remedy}")
    print(f"weights: imagenet of {architecture.name}, from Keras's cache or its server", flush=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # Keras sets none: a network that drops packets would hold it for minutes
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras prints its server's address and its own bar
            model = architecture.pretrained.download()
    except Exception as error:  # whatever the network raises: get_file wraps it differently by cause
        reason = str(error).strip().rpartition(" -- ")[2].splitlines()[0][:120]  # get_file: "URL … -- cause"
        raise UserError(
            f"--weights imagenet: Keras could not download {architecture.name}'s weights ({reason}); {remedy}"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    alike = architecture.pretrained.load or layer_kinds(model) == layer_kinds(architecture.build(architecture.sizes[0]))
    if not alike:
        raise UserError(
            f"--weights imagenet: Keras's {model.name} has other layers than {architecture.name} here, so the weights "
            f"are of another network; {remedy}"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imagenet.weights.h5"
        model.save_weights(path)
        return Weights("imagenet", path.read_bytes(), ".weights.h5")


def layer_kinds(model: keras.Model) -> list[str]:
    """List the class of each layer from input to output, those of models within the model too."""
    result: list[str] = []
    for layer in model.layers:
        result += layer_kinds(layer) if isinstance(layer, keras.Model) else [type(layer).__name__]
    return result
