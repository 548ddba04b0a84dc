"""An archive as it was downloaded, a folder or a zip: its files, read in place and never unpacked.

A folder may still hold the image zips of Dataverse or the ISIC challenge; their members count as files of the archive.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ham_ray import storage
from ham_ray.errors import UserError

MAX_MEMBER_BYTES = 256 << 20  # the largest original is under 1 MB: anything near this is no picture
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_INNER_ZIP = re.compile(r"(HAM10000_images_part_\d+|ISIC2018_Task3_\w+)\.zip", re.IGNORECASE)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, …, lengths of its name and extra field


class UnreadableMember(Exception):
    """A file of the archive that cannot be read; the message says why."""


class ZipPlace(NamedTuple):
    """Where a member's bytes stand in its zip file."""

    offset: int
    compressed: int
    method: int
    crc: int
    encrypted: bool


class Member(NamedTuple):
    """One file of the archive: `container` is the zip or the folder it is in, `label` its name for people."""

    container: str
    name: str
    label: str
    size: int  # bytes, unpacked
    place: ZipPlace | None = None  # None: a plain file

    @property
    def file_name(self) -> str:
        """The last part of its name."""
        return self._parts[-1]

    @property
    def image_id(self) -> str:
        """The file's name without folder and suffix: the identity of an image in every layout."""
        return self.file_name.rpartition(".")[0] or self.file_name

    @property
    def is_image(self) -> bool:
        """Whether the name says so, in a data set."""
        return self.ends_in(_IMAGE_SUFFIXES)

    def ends_in(self, suffixes: tuple[str, ...]) -> bool:
        """Whether its name does; segmentation masks and macOS's hidden copies are left aside."""
        hidden = self.file_name.startswith(".") or "__MACOSX" in self._parts
        mask = self.image_id.endswith("_segmentation")
        return self.file_name.lower().endswith(suffixes) and not hidden and not mask

    @property
    def is_safe(self) -> bool:
        """False for a name that leads out of the archive (`../`, absolute, a drive)."""
        return ".." not in self._parts and self._parts[0] != "" and ":" not in self._parts[0]

    @property
    def _parts(self) -> list[str]:
        """Of the path; zips made on Windows may hold backslashes."""
        return self.name.replace("\\", "/").split("/")


@dataclass(frozen=True)
class Files:
    """The files of an archive, sorted by name. `signature` changes whenever a file does."""

    path: Path
    members: list[Member]
    signature: str


def list_files(archive: str | Path) -> Files:
    """List a folder, a zip, or a picture by itself.

    Raises:
        UserError: no such path, not a zip, unreadable, or nothing in it.
    """
    if storage.is_remote(archive):
        raise UserError(f"the archive must be a local or shared path, got {str(archive)!r}; copy it to one")
    path = Path(storage.absolute(archive).removeprefix("file://"))
    try:
        stamp = path.stat()
        found = list(_listed(path))
    except FileNotFoundError:
        raise UserError(f"no such file or folder: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not found:
        raise UserError(f"{path} is empty: no image in it")
    members = sorted(found, key=lambda member: member.label)
    # The time is part of it: damaged bytes may leave a zip's size and its recorded checksums as they were.
    seed = "" if path.is_dir() else f"{stamp.st_size} {stamp.st_mtime_ns}"
    return Files(path, members, _signature(seed, members))


def read(member: Member) -> bytes:
    """The content of a file. Keeps no state: fit for threads and for other processes.

    zipfile would parse the directory of all members again in each process and hold one lock for all threads.

    Raises:
        UnreadableMember: gone, unreadable, damaged, encrypted, or larger than `MAX_MEMBER_BYTES`.
    """
    if member.size > MAX_MEMBER_BYTES:
        raise UnreadableMember(f"{member.size:,} bytes, more than any image has")
    try:
        if member.place is None:
            return Path(member.container, member.name).read_bytes()
        return _read_zipped(member.container, member.size, member.place)
    except OSError as error:
        raise UnreadableMember(error.strerror or str(error)) from None
    except (zlib.error, struct.error) as error:
        raise UnreadableMember(f"damaged in the zip: {error}") from None


def same_content(members: list[Member]) -> bool:
    """Whether all these files hold the same bytes; zip members are compared by size and checksum, without reading."""
    if len({member.size for member in members}) > 1:
        return False
    if all(member.place for member in members):
        return len({member.place.crc for member in members if member.place}) == 1
    return len({hashlib.sha256(read(member)).digest() for member in members}) == 1


def _read_zipped(container: str, size: int, place: ZipPlace) -> bytes:
    if place.encrypted or place.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnreadableMember("encrypted" if place.encrypted else f"unsupported zip compression {place.method}")
    with Path(container).open("rb") as file:
        file.seek(place.offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise UnreadableMember("damaged in the zip: no header where its directory points")
        file.seek(name_length + extra_length, os.SEEK_CUR)
        data = file.read(place.compressed)
    if place.method == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    if len(data) != size or zlib.crc32(data) != place.crc:
        raise UnreadableMember("damaged in the zip: checksum differs")
    return data


def _list_zip(path: Path, prefix: str) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a whole zip file ({error}); download it again") from None
    for info in infos:
        if not info.is_dir():
            encrypted = bool(info.flag_bits & 1)
            place = ZipPlace(info.header_offset, info.compress_size, info.compress_type, info.CRC, encrypted)
            yield Member(str(path), info.filename, prefix + info.filename, info.file_size, place)


def _listed(path: Path) -> Iterator[Member]:
    if path.is_dir():
        yield from _list_folder(path)
    elif path.suffix.lower() in (*PICTURES, ".parquet"):
        yield Member(str(path.parent), path.name, path.name, _size(path))
    else:
        yield from _list_zip(path, "")


def _list_folder(root: Path) -> Iterator[Member]:
    def refuse(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(root, onerror=refuse):
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if _INNER_ZIP.fullmatch(name):
                yield from _list_zip(path, f"{relative}/")
            else:
                yield Member(str(root), relative, relative, _size(path))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0  # a dangling link is listed, and fails when read


def _signature(seed: str, members: list[Member]) -> str:
    digest = hashlib.sha256(seed.encode())
    for member in members:
        stamp = member.place.crc if member.place else _modified(Path(member.container, member.name))
        digest.update(f"{member.label}\0{member.size}\0{stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
