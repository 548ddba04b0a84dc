"""Checks of single options before Ray and TensorFlow start: each error has the option, its value and the remedy."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import h5py

from ham_ray import storage
from ham_ray.data import layouts
from ham_ray.data.images import CARD, Images, open_images
from ham_ray.errors import UserError, listed, shown

_LONGEST_NAME = 100  # bytes: file systems take 255, and temporary files and locks add to it
_OUT_TAKEN = ("activations", "images")  # folders that jobs make beside those of their runs


def choice(option: str, values: str, choices: Iterable[str]) -> None:
    """Refuse what is none of the choices."""
    if values not in (names := tuple(choices)):
        raise UserError(f"{option} {shown(values)}: choose {listed(names)}")


def whole(option: str, values: int | None, least: int, most: int = 10**6, remedy: str = "") -> None:
    """Refuse a whole number out of range; None is an option that was left out."""
    if values is not None and not least <= values <= most:
        limit = f"at least {least}" if values < least else f"at most {most:,}"
        raise UserError(f"{option} {shown(values)}: {limit}{remedy}")


def number(option: str, values: float | None, least: float, most: float = 1e9) -> None:
    """Refuse a number out of range, or none at all (nan, inf); None is an option that was left out."""
    if values is not None and not (math.isfinite(values) and least <= values <= most):
        raise UserError(f"{option} {values:g}: a number from {least:g} to {most:g}")


def size(option: str, values: int | None) -> None:
    """Refuse a side of images, in pixels, that ingest does not make; None is an option that was left out."""
    whole(option, values, 16, 1024, " pixels")


def name(option: str, values: str | None) -> None:
    """Refuse what is no name of one folder, in paths and in URIs; None is an option that was left out."""
    if values is None:
        return
    if not values.strip() or values != values.strip():
        problem = "it is empty, or starts or ends with a blank"
    elif not values.isprintable():
        problem = "it holds control characters, or bytes that are no text"
    elif forbidden := sorted(set(values) & set("/\\?#%")):
        problem = f"it holds {' '.join(forbidden)}"
    elif values.startswith("."):
        problem = "it starts with a dot"
    elif len(values.encode()) > _LONGEST_NAME:
        problem = f"it is longer than {_LONGEST_NAME} bytes"
    elif values in _OUT_TAKEN:
        problem = "a folder of that name holds what all runs share"
    else:
        return
    raise UserError(
        f"{option} {shown(values)}: {problem}; letters, digits, '-', '_' and '.' make a name, such as run-1"
    )


def there(option: str, path: str, expected: str) -> None:
    """Refuse a path or URI at which nothing is."""
    if not path.strip():
        raise UserError(f"{option}: an empty path; give {expected}")
    try:
        exists = storage.exists(path)
    except (OSError, ValueError) as error:
        reason = re.sub(r".*Detail: \[errno \d+\] ", "", str(error), flags=re.DOTALL)  # pyarrow puts the path before it
        raise UserError(f"{option} {shown(path)} cannot be read: {shown(reason)}; give {expected}") from None
    if not exists:
        raise UserError(f"{option} {shown(path)}: no such file or folder; give {expected}")


def file(option: str, path: str, expected: str) -> None:
    """Refuse a path or URI at which no file is."""
    there(option, path, expected)
    if not storage.is_remote(path) and _local(path).is_dir():
        raise UserError(f"{option} {shown(path)}: a folder; give {expected}")


def out_folder(option: str, path: str) -> None:
    """Refuse a folder that cannot be made or written."""
    _writable(option, path, "a folder")


def out_file(option: str, path: str) -> None:
    """Refuse a file that cannot be written because of where it is to be."""
    if not path.strip() or path.endswith("/") or (not storage.is_remote(path) and _kind(option, path) == "folder"):
        raise UserError(f"{option} {shown(path)} is a folder; give a file, in it perhaps")
    _writable(option, storage.parent(path) or ".", "a file in a folder")


def out_new(option: str, path: str) -> None:
    """Refuse a local path at which something is, or where nothing can be written."""
    if not path.strip() or _kind(option, path):
        raise UserError(f"{option} {shown(path)} exists already; give another, or delete it")
    _writable(option, storage.parent(storage.absolute(path)), "a path in a folder")


def _kind(option: str, target: str) -> str | None:
    """Say what is at a local path: a `folder`, a `file`, or nothing (None)."""
    path = _local(target)
    try:
        return "folder" if path.is_dir() else "file" if path.exists() else None
    except OSError as error:
        raise UserError(f"{option} {shown(target)} cannot be written: {error.strerror or error}") from None


def _local(path: str) -> Path:
    return Path(storage.absolute(path).removeprefix("file://"))


def _writable(option: str, target: str, expected: str) -> None:
    """Try to write in the nearest folder that exists: rights alone do not show a file system that is read-only."""
    if not target.strip():
        raise UserError(f"{option}: an empty path; give {expected}")
    if storage.is_remote(target):
        storage.resolve(target)
        return
    path = _local(target)
    try:
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(0, "a file is in the way", str(nearest))
        with tempfile.TemporaryDirectory(prefix=".ham_ray-", dir=nearest):
            pass
    except OSError as error:
        where = f" ({shown(nearest)})" if (nearest := error.filename) and str(path) != nearest else ""
        raise UserError(
            f"{option} {shown(target)} cannot be written: {error.strerror or error}{where}; give {expected} that can"
        ) from None


def weights(spec: str) -> None:
    """Refuse a file of weights that is missing or holds none."""
    file("--weights", spec, "imagenet, none, or the path of a no-top .h5 file")
    if not spec.partition("?")[0].endswith(".h5"):
        raise UserError(f"--weights {shown(spec)}: not a .h5 file (Keras weights without top)")
    if not storage.is_remote(spec) and not h5py.is_hdf5(_local(spec)):
        raise UserError(f"--weights {shown(spec)}: named .h5, but no HDF5 file; download it again")


def table(option: str, path: str) -> Images:
    """Open the IMAGES table at a path or URI.

    Raises:
        UserError: no table is there, or an unfinished one.
    """
    there(option, path, "an IMAGES folder, which jobs/ingest.py makes")
    return open_images(path)


def data(path: str | None, option: str = "--data") -> Images | None:
    """Open the IMAGES table at a path or URI; None for an archive, which is only checked, and where no path is given.

    Raises:
        UserError: nothing is there, or neither a table nor an archive in a known layout.
    """
    if path is None:
        return None
    there(option, path, "HAM10000's archive (zip or folder) or an IMAGES folder")
    if storage.exists(storage.join(path, CARD)):
        return open_images(path)
    if storage.is_remote(path):
        raise UserError(f"{option} {path}: no IMAGES table; make it first: jobs/ingest.py ARCHIVE --out {path}")
    layouts.open_archive(path)
    return None
