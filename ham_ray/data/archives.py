"""An archive as it was downloaded, a folder or a zip: its files, read in place and never unpacked.

A folder may still hold the image zips of Dataverse or the ISIC challenge; their members count as files of the archive.
What is no plain file of this folder (links that lead out of it, pipes, devices) is listed and never opened.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ham_ray import resumable, storage
from ham_ray.data import formats
from ham_ray.errors import UserError, some

MAX_MEMBER_BYTES = 256 << 20  # the largest original is under 1 MB: anything near this is no picture
_INNER_ZIP = re.compile(r"(HAM10000_images_part_\d+|ISIC2018_Task3_\w+|ISIC_2019_\w+)\.zip", re.IGNORECASE)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, …, lengths of its name and extra field
_UTF8_NAME = 0x800  # flag of a zip member
_TOOLS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "#recycle", "#snapshot"}
_TOOLS |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}  # files of tools
# Of no interest by content: a data set may hold one of these for each of its images.
_NO_PICTURE = (
    *(".csv", ".tsv", ".tab", ".txt", ".md", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".py", ".ipynb"),
    *(".parquet", ".xls", ".xlsx", ".ods"),
)
_KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}


class UnreadableMember(Exception):
    """A file of the archive that cannot be read; the message says why."""

    reason = "unreadable"


class UnopenedMember(UnreadableMember):
    """A file that the system did not open or read: gone, not permitted, an I/O error; another time it may."""

    reason = resumable.UNOPENED


class Skipped(NamedTuple):
    """An entry of the archive that is never opened, with the reason and the details that quarantine.csv gives."""

    file: str
    reason: str
    detail: str

    @property
    def image_id(self) -> str:
        """The image_id that the entry would have by its name; empty where the name is no picture's."""
        return Member("", self.file, self.file, 0).image_id if _is_named(self.file) else ""


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
        name = unicodedata.normalize("NFC", printable(self.file_name))  # macOS writes é as e and an accent
        return name.rpartition(".")[0] or name

    @property
    def is_mask(self) -> bool:
        """Whether its name says that it is the outline of a lesion."""
        return self.image_id.lower().endswith("_segmentation")

    @property
    def is_image(self) -> bool:
        """Whether it is a picture, by its suffix or else by its content; masks are none."""
        return not self.is_mask and (_is_named(self.file_name) or formats.is_picture(self._kind))

    @property
    def is_other(self) -> bool:
        """Whether it is neither a picture nor a mask nor, by its suffix or content, text or a table."""
        known = self.is_mask or _is_named(self.file_name) or self._kind == "text"
        return not (known or formats.is_picture(self._kind))

    @property
    def _kind(self) -> str:
        """The kind of the file, by its content; "text" by the suffix alone where that is one of text and tables."""
        return "text" if self.file_name.lower().endswith(_NO_PICTURE) else formats.kind(head(self))

    @property
    def is_safe(self) -> bool:
        """False for a zip's name that leads out of the archive (`../`, absolute, a drive)."""
        first = self._parts[0]
        return self.place is None or (".." not in self._parts and first != "" and ":" not in first)

    @property
    def _parts(self) -> list[str]:
        """The parts of the path; zips made on Windows may hold backslashes."""
        return self.name.replace("\\", "/").split("/")


@dataclass(frozen=True)
class Files:
    """The files of an archive, sorted by name. `signature` changes whenever a file does.

    `skipped` are entries that are never opened, `hidden` counts the hidden entries and those of tools, by name.
    """

    path: Path
    members: list[Member]
    signature: str
    skipped: list[Skipped] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)

    def beside(self) -> list[str]:
        """List what the archive holds beside images and tables, in lines for people."""
        masks = sum(member.is_mask for member in self.members)
        others = [Path(m.file_name).suffix.lower() or "no suffix" for m in self.members if m.is_other]
        lines = [
            (masks, "segmentation masks left out", []),
            (len(others), "files that are no pictures left out", sorted({*others})),
            (self.hidden.total(), "hidden files, folders and those of tools, not looked into", sorted(self.hidden)),
        ]
        return [f"{what}: {count:,}" + (f" ({some(names)})" if names else "") for count, what, names in lines if count]


def list_files(archive: str | Path) -> Files:
    """List a folder, a zip, or a picture by itself.

    Raises:
        UserError: no such path, not a zip, unreadable, or nothing in it.
    """
    if storage.is_remote(archive):
        raise UserError(f"the archive must be a local or shared path, got {str(archive)!r}; copy it to one")
    path = Path(storage.absolute(archive).removeprefix("file://"))
    skipped: list[Skipped] = []
    hidden: Counter[str] = Counter()
    try:
        status = path.stat()
        result = list(_listed(path, status.st_mode, skipped, hidden))
    except FileNotFoundError:
        raise UserError(f"no such file or folder: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not result:
        rest = [f"{entry.file} ({entry.detail})" for entry in skipped] + sorted(hidden)
        raise UserError(f"{path} is empty: no image in it" + (f"; left out: {some(rest)}" if rest else ""))
    members = sorted(result, key=lambda member: (member.label, member.name))
    # The time is part of it: damaged bytes may leave a zip's size and its recorded checksums as they were.
    seed = "" if path.is_dir() else f"{status.st_size} {status.st_mtime_ns}"
    return Files(path, members, _signature(seed, members), sorted(skipped), hidden)


def read(member: Member) -> bytes:
    """Read a whole file of the archive. Keeps no state: fit for threads and for other processes.

    zipfile would parse the directory of all members again in each process and hold one lock for all threads.

    Raises:
        UnreadableMember: gone, unreadable, damaged, encrypted, no plain file, or larger than `MAX_MEMBER_BYTES`.
    """
    if (size := max(member.size, member.place.compressed if member.place else 0)) > MAX_MEMBER_BYTES:
        raise UnreadableMember(f"{size:,} bytes, more than any image has")
    try:
        if member.place is None:
            return _read_plain(Path(member.container, member.name))
        return _read_zipped(member.container, member.size, member.place)
    except OSError as error:
        raise UnopenedMember(error.strerror or str(error)) from None
    except (zlib.error, struct.error) as error:
        raise UnreadableMember(f"damaged in the zip: {error}") from None


def head(member: Member) -> bytes:
    """Read the first bytes of a file, `formats.HEAD` at most; b"" where the file cannot be read."""
    try:
        if member.place is None:
            return _read_plain(Path(member.container, member.name), whole=False)
        with Path(member.container).open("rb") as file:
            data = _packed(file, member.place, 2 * formats.HEAD)
        if member.place.method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, formats.HEAD)
        return data[: formats.HEAD]
    except (OSError, UnreadableMember, zlib.error, struct.error):
        return b""


def same_content(members: list[Member]) -> bool:
    """Say whether all these files hold the same bytes; zip members are compared by size and checksum, without reading.

    Raises:
        UnreadableMember: a file has to be read and cannot be.
    """
    if len({member.size for member in members}) > 1:
        return False
    if all(member.place for member in members):
        return len({member.place.crc for member in members if member.place}) == 1
    return len({hashlib.sha256(read(member)).digest() for member in members}) == 1


def printable(name: str) -> str:
    """Write a file's name as text that any table and terminal takes.

    Control characters, and bytes that are not UTF-8, are written in hex.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _read_plain(path: Path, whole: bool = True) -> bytes:
    """Read a plain file, or only its head, without ever waiting as opening a pipe would."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableMember(f"{_KINDS.get(stat.S_IFMT(status.st_mode), 'a folder')} by now, no plain file")
        if status.st_size > MAX_MEMBER_BYTES:
            raise UnreadableMember(f"{status.st_size:,} bytes by now, more than any image has")
        return file.readall() if whole else file.read(formats.HEAD)


def _read_zipped(container: str, size: int, entry: ZipPlace) -> bytes:
    with Path(container).open("rb") as file:
        data = _packed(file, entry, entry.compressed)
    if entry.method == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    if len(data) != size or zlib.crc32(data) != entry.crc:
        raise UnreadableMember("damaged in the zip: checksum differs")
    return data


def _packed(file: BinaryIO, entry: ZipPlace, most: int) -> bytes:
    """Read the first bytes of a member as they stand in the zip, at most `most`."""
    if entry.encrypted or entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnreadableMember("encrypted" if entry.encrypted else f"unsupported zip compression {entry.method}")
    file.seek(entry.offset)
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise UnreadableMember("damaged in the zip: no header where its directory points")
    file.seek(name_length + extra_length, os.SEEK_CUR)
    return file.read(min(most, entry.compressed))


def _listed(path: Path, mode: int, skipped: list[Skipped], hidden: Counter[str]) -> Iterator[Member]:
    if stat.S_ISDIR(mode):
        yield from _list_folder(path, skipped, hidden)
    elif not stat.S_ISREG(mode):
        raise UserError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'no file')}: name a folder, a zip or a picture")
    else:
        alone = Member(str(path.parent), path.name, printable(path.name), path.stat().st_size)
        if alone.is_image or path.suffix.lower() == ".parquet":
            yield alone
        else:
            yield from _list_zip(path, "", skipped, hidden)


def _list_zip(path: Path, prefix: str, skipped: list[Skipped], hidden: Counter[str]) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except UnicodeDecodeError:
        raise UserError(f"{path} holds names that say they are UTF-8 and are not; pack it again") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise UserError(f"{path} is not a whole zip file ({error}); download it again") from None
    for info in infos:
        name = _zip_name(info)
        label, kind = prefix + printable(name), stat.S_IFMT(info.external_attr >> 16)
        if tool := _hidden_part(name):
            hidden[printable(tool)] += not info.is_dir()
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            skipped.append(Skipped(label, "no plain file", f"{_KINDS.get(kind, 'special')} in a zip; not read"))
        elif not info.is_dir():
            encrypted = bool(info.flag_bits & 1)
            entry = ZipPlace(info.header_offset, info.compress_size, info.compress_type, info.CRC, encrypted)
            yield Member(str(path), name, label, info.file_size, entry)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Decode a member's name.

    macOS and Linux write UTF-8 without saying so, which zipfile takes for DOS's letters.
    """
    if info.flag_bits & _UTF8_NAME or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _list_folder(root: Path, skipped: list[Skipped], hidden: Counter[str]) -> Iterator[Member]:
    def unreadable(error: OSError) -> None:
        if error.filename == str(root):
            raise error
        relative = Path(error.filename).relative_to(root).as_posix()
        skipped.append(Skipped(printable(relative), "unreadable", f"a folder: {error.strerror}"))

    for folder, folders, names in os.walk(root, onerror=unreadable):
        plain = [name for name in folders if not _hidden_part(name)]
        hidden.update(printable(name) for name in (*folders, *names) if _hidden_part(name))
        links = [name for name in plain if Path(folder, name).is_symlink()]
        folders[:] = sorted(set(plain) - set(links))
        named = [printable(Path(folder, name).relative_to(root).as_posix()) for name in folders if _is_named(name)]
        skipped.extend(Skipped(name, "no plain file", "a folder: what is in it is read") for name in named)
        for name in (*links, *(name for name in names if not _hidden_part(name))):
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if detail := _why_not_opened(path, root):
                skipped.append(Skipped(printable(relative), "no plain file", detail))
            elif _INNER_ZIP.fullmatch(name):
                yield from _list_zip(path, f"{printable(relative)}/", skipped, hidden)
            else:
                yield Member(str(root), relative, printable(relative), _size(path))


def _why_not_opened(path: Path, root: Path) -> str | None:
    """Say why an entry of a folder is never opened; None: it is a plain file, or a link to one in the same folder."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "gone since the folder was listed"
    if stat.S_ISREG(mode):
        return None
    if not stat.S_ISLNK(mode):
        return _KINDS.get(stat.S_IFMT(mode), "special")
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing"
    except (OSError, RuntimeError):  # Python before 3.13 raises RuntimeError for a loop
        return "a link that leads nowhere (a loop, or a folder one may not enter)"
    if not target.is_relative_to(root):
        return "a link that leaves the folder; copy what it points to"
    if stat.S_ISDIR(mode):
        return "a link to a folder that is read where it stands"
    return None if stat.S_ISREG(mode) else f"a link to {_KINDS.get(stat.S_IFMT(mode), 'something special')}"


def _hidden_part(name: str) -> str | None:
    """Return the part of a path that is hidden or a tool's, such as `.ipynb_checkpoints`; None without one."""
    parts = name.replace("\\", "/").split("/")
    return next((part for part in parts if part.lower() in _TOOLS or (part[:1] == "." and part.strip("."))), None)


def _is_named(name: str) -> bool:
    """Say whether a name ends as pictures do."""
    return name.lower().endswith((*formats.SUFFIXES, *formats.CAMERA_RAW))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0  # gone by now: it is listed, and fails when it is read


def _signature(seed: str, members: list[Member]) -> str:
    digest = hashlib.sha256(seed.encode())
    for member in members:
        stamp = member.place.crc if member.place else _modified(Path(member.container, member.name))
        digest.update(f"{member.label}\0{member.size}\0{stamp}\n".encode())
    return digest.hexdigest()


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
