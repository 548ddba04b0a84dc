"""Reading and writing at a path or a URI (`s3://`, `gs://`, `file://`), through pyarrow's file systems.

Nothing half-written is ever readable: a local file is written beside its place, synced and renamed; an object store
shows an object only once its upload is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import fs

from ham_ray.errors import UserError

MAX_JSON = 64 << 20  # bytes
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+://")


def is_remote(uri: str | Path) -> bool:
    """Say whether a path or URI is remote: it has a scheme other than `file://`."""
    return bool(_SCHEME.match(str(uri))) and not str(uri).startswith("file://")


def absolute(uri: str | Path) -> str:
    """Make a local path absolute, for workers run in other directories; a URI stays as it is.

    Raises:
        UserError: the path leads nowhere: `~` of an unknown user, or links in a circle.
    """
    text = str(uri)
    try:
        return text if _SCHEME.match(text) else str(Path(text).expanduser().resolve())
    except RuntimeError as error:  # ~ of nobody, links in a circle
        raise UserError(f"cannot open {text!r}: {error}") from None


def join(uri: str | Path, *parts: str) -> str:
    """Return the path of an entry below `uri`; a URI's query (`?endpoint_override=…`) stays at the end."""
    base, question, query = str(uri).partition("?") if is_remote(uri) else (str(uri), "", "")
    return "/".join([base.rstrip("/"), *parts]) + question + query


def parent(uri: str | Path) -> str:
    """Return the folder that an entry is in."""
    base, question, query = str(uri).partition("?") if is_remote(uri) else (str(uri), "", "")
    return base.rstrip("/").rpartition("/")[0] + question + query


def sibling(uri: str | Path, suffix: str) -> str:
    """Return the path beside `uri` whose name has `.suffix` added."""
    base, question, query = str(uri).partition("?") if is_remote(uri) else (str(uri), "", "")
    return f"{base.rstrip('/')}.{suffix}{question}{query}"


def resolve(uri: str | Path) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path on it.

    Raises:
        UserError: the scheme is unknown to pyarrow or the address is malformed.
    """
    try:
        return fs.FileSystem.from_uri(absolute(uri))
    except (ValueError, OSError) as error:
        raise UserError(
            f"cannot open {str(uri)!r}: {error}; use a local path, s3://bucket/path or gs://bucket/path"
        ) from None


def exists(uri: str | Path) -> bool:
    """Say whether there is a file or folder at a path or URI."""
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def is_folder(uri: str | Path) -> bool:
    """Say whether there is a folder at a path or URI; False where nothing can be read."""
    try:
        filesystem, path = resolve(uri)
        return filesystem.get_file_info(path).type == fs.FileType.Directory
    except (UserError, OSError, ValueError):
        return False


def listdir(uri: str | Path) -> list[str]:
    """List the names in a folder, sorted; empty where there is no such folder."""
    return sorted(info.base_name for info in _infos(uri))


def folders(uri: str | Path) -> list[str]:
    """List the folders in a folder, each with its whole path, sorted; empty where there is no such folder."""
    return sorted(join(uri, info.base_name) for info in _infos(uri) if info.type == fs.FileType.Directory)


def _infos(uri: str | Path) -> list[fs.FileInfo]:
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))


def read_bytes(uri: str | Path) -> bytes:
    """Read a whole file."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def read_limited(uri: str | Path, most: int, option: str = "") -> bytes:
    """Read a whole plain file of at most `most` bytes; nothing of another is read.

    Raises:
        UserError: it is larger, or a folder, a pipe or a device; with the option that named it.
    """
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    named = f"{option} {uri}".strip()
    if info.type != fs.FileType.File:
        raise UserError(f"{named} is no plain file")
    if info.size is not None and info.size > most:
        raise UserError(f"{named} has {info.size:,} bytes, more than the {most:,} that are read of such a file")
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def read_object(uri: str | Path, remedy: str = "copy it again from its run, or move it away") -> dict[str, Any]:
    """Read the JSON object in a file; an empty one where there is no such file.

    Raises:
        UserError: over `MAX_JSON`, or no JSON object: damaged, with the remedy.
    """
    if not exists(uri):
        return {}
    try:
        result = json.loads(read_limited(uri, MAX_JSON))
    except (ValueError, RecursionError):
        raise UserError(f"{uri} is damaged (no JSON): {remedy}") from None
    if not isinstance(result, dict):
        raise UserError(f"{uri} is damaged (a {type(result).__name__}, no object): {remedy}")
    return result


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with writing(uri) as temporary:
        temporary.write_bytes(data)


@contextmanager
def writing(uri: str | Path) -> Iterator[Path]:
    """Make a temporary local path; what the block writes there is at `uri` afterwards, unless the block raises."""
    target = absolute(uri).removeprefix("file://")
    remote = is_remote(target)
    folder = Path(tempfile.gettempdir()) if remote else Path(target).parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{basename(target)}.{uuid.uuid4().hex[:8]}.part{Path(basename(target)).suffix}"
    try:
        yield temporary
        _upload(temporary, target) if remote else _replace(temporary, Path(target))
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: str, shared: bool = False) -> Iterator[None]:
    """Keep a second process out of a local folder while the block runs; the kernel lets go when the process dies.

    `shared` lets in those that share it as well.

    An object store has no locks: there the block runs without.

    Raises:
        UserError: another process is in it.
    """
    if is_remote(folder):
        yield
        return
    path = Path(folder.removeprefix("file://"))
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work in {folder}; wait for it, or give another --name") from None
        yield


def remove(uri: str | Path) -> None:
    """Delete a file or a folder with all in it; nothing happens where there is none."""
    filesystem, path = resolve(uri)
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.Directory:
        filesystem.delete_dir(path)
    elif kind == fs.FileType.File:
        filesystem.delete_file(path)


def basename(uri: str) -> str:
    """Return the last part of a path or URI, without its query."""
    return uri.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]


def _upload(source: Path, uri: str) -> None:
    filesystem, path = resolve(uri)
    try:
        with source.open("rb") as reader, filesystem.open_output_stream(path) as writer:
            shutil.copyfileobj(reader, writer, 8 << 20)
    except BaseException:  # the stream closes as if all were well: what it published is a part
        filesystem.delete_file(path)
        raise


def _replace(source: Path, target: Path) -> None:
    with source.open("rb") as handle:
        os.fsync(handle.fileno())
    source.replace(target)
