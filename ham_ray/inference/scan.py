"""`.keras` files, checked before anything in them is built: a zip of a description (JSON) and arrays (HDF5), no code.

Sizes are checked before what they are sizes of is read: a small file may unpack to gigabytes, or refer to other files.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from ham_ray import storage
from ham_ray.data import datasets
from ham_ray.data.classes import Classes
from ham_ray.errors import UserError
from ham_ray.models import registry
from ham_ray.models.saving import CLASSES, METADATA
from ham_ray.models.vision_transformer import LINEAR, SCALE

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
LIMITS = {CONFIG: 16 << 20, METADATA: 1 << 20, WEIGHTS: 2 << 30}  # bytes, unpacked; usual are 180 kB and 97 MB
MAX_RATIO = 100  # unpacked to packed; Keras does not pack at all, and weights pack little
MAX_BYTES = sum(LIMITS.values())
MAX_DEPTH = 100  # of the description; 17 are usual
MAX_SIDE, MAX_WIDTH = 1024, 16384  # pixels; units or filters of a layer
MAX_BUILT = 4 << 30  # bytes of all kernels by the bound below; usual are 0.5 GB
# What the models of this project are made of. Not all of Keras: some of its layers read files or run graphs of others.
_LAYERS = (
    *("Activation", "Add", "BatchNormalization", "Concatenate", "Conv2D", "Cropping1D", "Dense", "DepthwiseConv2D"),
    *("Dropout", "EinsumDense", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "InputLayer", "LayerNormalization"),
    *("MaxPooling2D", "MultiHeadAttention", "Multiply", "Normalization", "Permute", "ReLU", "Rescaling", "Reshape"),
    *("Resizing", "Softmax", "ZeroPadding1D", "ZeroPadding2D"),
)
_INITIALIZERS = ("Constant", "GlorotUniform", "Ones", "TruncatedNormal", "VarianceScaling", "Zeros")
_EQUATIONS = (LINEAR, SCALE)  # of EinsumDense: another could multiply any axes
_ALLOWED = {
    *(("keras.layers", name) for name in _LAYERS),
    *(("keras.initializers", name) for name in _INITIALIZERS),
    ("keras", "DTypePolicy"),
    ("keras.src.models.functional", "Functional"),
    ("keras", "Sequential"),
    ("keras.src.ops.numpy", "Add"),
    ("keras.src.ops.numpy", "Flip"),
    (None, "__keras_tensor__"),  # what connects layers: shape and type
}
_WIDTHS = ("units", "filters", "groups", "projection_dim", "num_heads", "key_dim", "value_dim", "height", "width")
_SHAPES = ("batch_shape", "input_shape", "target_shape", "output_shape")
_CODE = re.compile(r"\w{1,100}")  # of a class
_CHANNELS = (-1, 3, [-1], [3])  # axes
_END = struct.Struct("<4s4xHHII")  # of a zip: signature, …, members here and in all, bytes of its directory, where
_END_LENGTH, _END64_LENGTH, _MOST_COMMENT = 22, 20, 1 << 16


@dataclass(frozen=True)
class KerasFile:
    """A checked file: its bytes, the side in pixels of the images that its classifier takes, and its classes."""

    content: bytes
    size: int
    classes: Classes


def open_file(uri: str) -> KerasFile:
    """Read and check a `.keras` file; no layer of it is built.

    Raises:
        UserError: not a Keras 3 file, over a limit, damaged, with code or weights that are no numbers in it, none of
            this project's classifiers, or one that names other classes than it has. Files of older code do not name
            them: they are HAM10000's.
    """
    if not storage.exists(uri):
        raise UserError(f"--model {uri}: no such file")
    content = storage.read_limited(uri, MAX_BYTES, "--model")
    try:
        config, metadata, weights = _unpacked(content)
        size, units = _image_size_and_classes(config)
        classes = _classes(metadata, units)
        _check_weights(weights)
    except _Refused as reason:
        raise UserError(f"--model {uri} {reason}") from None
    return KerasFile(content, size, classes)


class _Refused(Exception):
    """Why a file is refused: the rest of a sentence that begins with its name."""


_OTHER = f"is no Keras 3 file (.keras: a zip with a {CONFIG}); other kinds of files are not opened, they may hold code"


def _unpacked(content: bytes) -> tuple[Any, Any, bytes]:
    """Read the description, the metadata, and the bytes of the weights."""
    _check_end(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_members(archive.infolist())
            config, metadata, weights = (_read(archive, name) for name in (CONFIG, METADATA, WEIGHTS))
    except (zipfile.BadZipFile, NotImplementedError, KeyError, ValueError, EOFError, struct.error):
        raise _Refused(_OTHER) from None
    return _parsed(CONFIG, config), _parsed(METADATA, metadata), weights


def _parsed(name: str, content: bytes) -> Any:
    """Parse a member that is JSON."""
    try:
        return json.loads(content)
    except RecursionError:
        raise _Refused(f"is not taken: its {name} is nested too deep") from None
    except ValueError as error:
        raise _Refused(f"is damaged: its {name} is no JSON ({type(error).__name__}); copy it again") from None


def _classes(metadata: Any, units: int) -> Classes:
    """Return the classes that the file names, or the default ones of a file that is too old to name any.

    Refuse classes that are not as many as the classifier's `units`.
    """
    recorded = _member(metadata, CLASSES)
    if recorded is None:
        codes = datasets.DEFAULT.classes.codes if datasets.DEFAULT.classes else ()
    elif (
        isinstance(recorded, list)
        and recorded
        and all(isinstance(name, str) and _CODE.fullmatch(name) for name in recorded)
    ):
        codes = tuple(recorded)
    else:
        raise _Refused(f"names no classes: {ascii(recorded)[:200]}; save or copy it again")
    classes = datasets.classes_of(codes)
    if classes.codes != codes or len({*codes}) != len(codes):
        raise _Refused(
            f"gives probabilities of {', '.join(codes)!r}, in this order; here they are of "
            f"{', '.join(classes.codes)!r}: predict with the version of ham_ray that saved it"
        )
    if len(codes) != units:
        raise _Refused(
            f"gives {units} probabilities and is of {len(codes)} classes ({', '.join(codes)}); save it again"
        )
    return classes


def _check_end(content: bytes) -> None:
    """Refuse a zip of many members before zipfile makes an object of each."""
    start = content.rfind(b"PK\x05\x06", max(0, len(content) - _END_LENGTH - _MOST_COMMENT))
    if start < 0 or len(content) - start < _END_LENGTH:
        raise _Refused(_OTHER)
    _, here, members, directory, _ = _END.unpack_from(content, start)
    many = content[max(0, start - _END64_LENGTH) : start].startswith(b"PK\x06\x07")  # only zips of 65,535 or over 4 GiB
    if many or max(here, members) > len(LIMITS) or directory > 1 << 16:
        raise _Refused(f"is no model of this project: a zip of more members than {', '.join(sorted(LIMITS))}")


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if CONFIG not in names:
        raise _Refused(_OTHER)
    if len(set(names)) < len(names):
        raise _Refused("is not taken: two of its members have one name; save the model again")
    if wrong := sorted(set(names) ^ set(LIMITS)):
        raise _Refused(f"is no model of this project: beside {CONFIG} it holds or lacks {', '.join(map(ascii, wrong))}")
    for member in members:
        if member.flag_bits & 1:
            raise _Refused(f"is encrypted ({member.filename}): decrypt it first")
        if member.file_size > LIMITS[member.filename]:
            raise _Refused(
                f"is not taken: its {member.filename} unpacks to {member.file_size:,} bytes, more than the "
                f"{LIMITS[member.filename]:,} that are read"
            )
        if member.file_size > MAX_RATIO * member.compress_size + (1 << 20):
            raise _Refused(
                f"is not taken: {member.compress_size:,} bytes of its {member.filename} unpack to {member.file_size:,}"
            )


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a member, as long as its directory says and no longer."""
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise _Refused(f"is damaged: the checksum of its {name} does not hold; copy it again") from None


def _image_size_and_classes(config: Any) -> tuple[int, int]:
    """Return the side of the images that the described classifier takes, in pixels, and how many classes it has."""
    objects = list(_objects(config))
    allowed = _ALLOWED.union(*(architecture.layers for architecture in registry.architectures().values()))
    if foreign := sorted(filter(None, (_foreign(part, allowed) for part in objects))):
        raise _Refused(f"cannot be loaded safely: it holds code or layers of its own: {', '.join(foreign[:5])}")
    inner = _member(config, "config")
    layers = _member(inner, "layers")
    first, last = (layers[0], layers[-1]) if isinstance(layers, list) and layers else (None, None)
    shape, kind = _member(_member(first, "config"), "batch_shape"), _member(_member(first, "config"), "dtype")
    units = next((part.get("units") for part in objects if part.get("name") == "logits" and "units" in part), None)
    named = (_member(inner, "name"), kind, _member(last, "name"))
    square = isinstance(shape, list) and len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3
    if named != ("ham_ray", "uint8", "probabilities") or not square or not (isinstance(units, int) and units > 1):
        raise _Refused(
            f"is no classifier of this project: named {named[0]!r}, it takes {kind} of shape {shape or []} and ends in "
            f"{named[2]!r} of {units or 'unknown'} classes; expected 'ham_ray', uint8 images and 'probabilities' of "
            "two classes or more"[:400]
        )
    _check_widths(objects)
    if not (isinstance(shape[1], int) and 0 < shape[1] <= MAX_SIDE):
        raise _Refused(f"is not taken: images of {shape[1]!r} pixels, at most {MAX_SIDE:,} are possible")
    return shape[1], units


def _check_widths(objects: list[dict[str, Any]]) -> None:
    """Refuse layers that would take more memory than any weights do: they are built before weights are loaded.

    What enters a layer has at most as many channels as the widest layer or shape of the description: depthwise
    convolutions give no more channels than they take, and normalisation has a scale for each channel alone.
    """
    widths = [part[name] for part in objects for name in _WIDTHS if name in part]
    shapes = [part[name] for part in objects for name in _SHAPES if part.get(name)]
    channels = [last for shape in shapes for last in _channels(shape)]
    areas = [part["kernel_size"] for part in objects if "kernel_size" in part]
    areas += [part.get("output_shape") for part in objects if "equation" in part]
    sides = [side for area in areas for side in (area if isinstance(area, list) else [area])]
    if not all(isinstance(number, int) and 0 < number <= MAX_WIDTH for number in (*widths, *channels, *sides)):
        raise _Refused(f"is not taken: a layer has no width from 1 to {MAX_WIDTH:,}")
    kernels = [
        -(-part.get("units", part.get("filters", 1)) * math.prod(part.get("kernel_size", [1])) // part.get("groups", 1))
        for part in objects
        if any(name in part for name in ("units", "filters", "depth_multiplier"))
    ]
    kernels += [4 * part["num_heads"] * part.get("key_dim", 1) for part in objects if "num_heads" in part]
    kernels += [sum(part["output_shape"]) for part in objects if "equation" in part]  # a kernel, and a bias a token
    if wrong := [part["equation"] for part in objects if part.get("equation") not in (None, *_EQUATIONS)]:
        raise _Refused(f"is not taken: a layer multiplies by {wrong[0]!a}")
    if any(part.get("depth_multiplier", 1) != 1 or part.get("axis", -1) not in _CHANNELS for part in objects):
        raise _Refused("is not taken: a layer multiplies channels, or normalises along more than those")
    if (most := 4 * max([*widths, *channels]) * sum(kernels)) > MAX_BUILT:
        raise _Refused(f"is not taken: its layers may take {most:,} bytes, more than {MAX_BUILT:,}")


def _channels(shape: Any) -> list[Any]:
    """Return the last number of a shape, or of each of a list of shapes."""
    if not isinstance(shape, list):
        return [shape]
    nested = any(isinstance(part, list) for part in shape)
    return [last for part in shape for last in _channels(part)] if nested else shape[-1:]


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Yield all JSON objects in a description, without recursion, which a deep description would exhaust."""
    waiting = [(config, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _Refused(f"is not taken: its {CONFIG} is nested deeper than {MAX_DEPTH}")
        if isinstance(part, dict):
            yield part
        children = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        waiting.extend((child, depth + 1) for child in children)


def _foreign(part: dict[str, Any], allowed: set[tuple[str | None, str]]) -> str | None:
    """Name what an object of the description builds, where this project's models are not made of it; None otherwise."""
    if "class_name" not in part:
        return None
    module, name, registered = part.get("module"), part["class_name"], part.get("registered_name")
    known = all(isinstance(text, str | None) for text in (module, name, registered)) and (module, name) in allowed
    return None if known and registered in (None, name) else f"{module or 'keras'}.{name}"[:100]


def _member(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, dict) else None


def _check_weights(content: bytes) -> None:
    """Refuse arrays that lie outside the file, are larger than they may be, or hold NaN or infinity."""
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            links: dict[str, Any] = {}
            file.visititems_links(links.__setitem__)
            if elsewhere := [name for name, link in links.items() if not isinstance(link, h5py.HardLink)]:
                raise _Refused(f"is not taken: its {WEIGHTS} holds links: {elsewhere[0]!a}")
            arrays = {name: file[name] for name in links if isinstance(file[name], h5py.Dataset)}
            _check_arrays(arrays)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, MemoryError, UnicodeError) as error:
        raise _Refused(f"is damaged: its {WEIGHTS} cannot be read ({type(error).__name__}); copy it again") from None


def _check_arrays(arrays: dict[str, h5py.Dataset]) -> None:
    if not arrays:
        raise _Refused(f"is damaged: its {WEIGHTS} is empty")
    for name, array in arrays.items():
        if array.external or array.is_virtual or array.dtype.kind not in "fiu":
            raise _Refused(f"is not taken: {name!a} in its {WEIGHTS} is no array of numbers within it")
    if (total := sum(array.size * array.dtype.itemsize for array in arrays.values())) > LIMITS[WEIGHTS]:
        raise _Refused(
            f"is not taken: its weights take {total:,} bytes, more than the {LIMITS[WEIGHTS]:,} that are read"
        )
    for name, array in arrays.items():
        if not np.isfinite(array[()]).all():
            raise _Refused(f"is of no use: its weights {name!a} are not all finite (NaN or infinity)")
