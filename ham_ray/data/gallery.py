"""Images to be predicted: an IMAGES table, an archive in a known layout, any folder or zip of pictures, or one."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from ham_ray import storage
from ham_ray.data import archives, formats, images, layouts, pictures
from ham_ray.data.archives import Files, Member
from ham_ray.data.images import CARD, Images, open_images
from ham_ray.data.quarantine import Finding
from ham_ray.data.stored import StoredRows
from ham_ray.data.truth import completed, once
from ham_ray.errors import UserError

BESIDE = ("no picture", "segmentation mask", "copy")  # reasons by which nothing is lost


class Loaded(NamedTuple):
    """Some images, uint8[n, size, size, 3], their ids, and what is wrong with the others."""

    image_ids: list[str]
    pixels: np.ndarray
    findings: list[Finding]


class Stretch(Protocol):
    """Some images of a gallery, with what it takes to read them and no more: a task is sent this."""

    def load(self) -> Loaded:
        """Read and decode them."""
        ...


class Gallery(Protocol):
    """Images to be predicted.

    `rows` has a row an image, sorted by image_id, with what is known of it: the columns of IMAGES that PREDICTIONS
    take; label is <NA> where it is not known, fold -1 where there is none.
    """

    @property
    def rows(self) -> pd.DataFrame:
        """What is known of each image."""
        ...

    @property
    def signature(self) -> str:
        """A text that changes whenever an image does."""
        ...

    @property
    def left_out(self) -> list[Finding]:
        """Files at the path that are no images to be predicted, or are never opened; each with its reason."""
        ...

    @property
    def hidden(self) -> Counter[str]:
        """Hidden entries and those of tools, by name: not looked into."""
        ...

    def stretch(self, rows: slice) -> Stretch:
        """Take the images of a stretch of the rows, to be read here or elsewhere."""
        ...

    def at(self, size: int) -> Gallery:
        """Take the same images at another size, in pixels.

        Raises:
            UserError: they are stored at their size.
        """
        ...

    def load(self, rows: slice) -> Loaded:
        """Read and decode a stretch of the rows."""
        ...


@dataclass(frozen=True)
class TableGallery:
    """An IMAGES table."""

    images: Images

    @property
    def rows(self) -> pd.DataFrame:
        """All its rows."""
        return self.images.rows

    @property
    def signature(self) -> str:
        """The table's fingerprint, and the order of its rows where they are not sorted by image_id."""
        return " ".join([self.images.fingerprint, *self.images.order.values()])

    @property
    def left_out(self) -> list[Finding]:
        """Nothing: ingest has listed it."""
        return []

    @property
    def hidden(self) -> Counter[str]:
        """Nothing."""
        return Counter()

    def stretch(self, rows: slice) -> Stretch:
        """Take a stretch of the rows with where they are stored."""
        return TableStretch(self.images.rows["image_id"].iloc[rows].tolist(), self._stored[rows])

    def at(self, size: int) -> Gallery:
        """Take the table itself at its own size; it has no other."""
        return _table(self.images, size, self.images.card["geometry"]) if size != self.images.size else self

    @cached_property
    def _stored(self) -> StoredRows:
        return self.images.stored(self.images.rows)

    def load(self, rows: slice) -> Loaded:
        """Read and decode a stretch of the rows; nothing is left out, for ingest left out what cannot be read."""
        return self.stretch(rows).load()


@dataclass(frozen=True)
class TableStretch:
    """Images of an IMAGES table, and where they are stored."""

    image_ids: list[str]
    rows: StoredRows

    def load(self) -> Loaded:
        """Read and decode the images; nothing is left out, for ingest left out what cannot be read."""
        return Loaded(self.image_ids, self.rows.pixels(), [])


@dataclass(frozen=True)
class FileGallery:
    """Files in a folder or a zip, each to be decoded to `size`×`size` pixels."""

    rows: pd.DataFrame
    signature: str
    files: list[Member]  # in the order of rows
    size: int
    geometry: str
    left_out: list[Finding] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)

    def stretch(self, rows: slice) -> Stretch:
        """Take these images, with the files that they are in."""
        image_ids = self.rows["image_id"].iloc[rows].tolist()
        return FileStretch(image_ids, self.files[rows], self.size, self.geometry)

    def at(self, size: int) -> Gallery:
        """Take the same files, to be decoded to another size."""
        return replace(self, size=size)

    def load(self, rows: slice) -> Loaded:
        """Read and decode the images; pictures that cannot be read become findings."""
        return self.stretch(rows).load()


@dataclass(frozen=True)
class FileStretch:
    """Images and the file of each, to be decoded to `size`×`size` pixels."""

    image_ids: list[str]
    files: list[Member]
    size: int
    geometry: str

    def load(self) -> Loaded:
        """Read and decode the images; pictures that cannot be read become findings."""
        ids, pixels, findings = [], [], []
        with pictures.strict_headers():
            for image_id, member in zip(self.image_ids, self.files, strict=True):
                try:
                    pixels.append(np.asarray(pictures.resized(archives.read(member), self.size, self.geometry)))
                    ids.append(image_id)
                except archives.UnreadableMember as error:
                    findings.append(Finding(member.label, image_id, error.reason, str(error)))
                except pictures.BadPicture as error:
                    findings.append(Finding(member.label, image_id, error.reason, str(error)))
        none = np.empty((0, self.size, self.size, 3), np.uint8)
        return Loaded(ids, np.stack(pixels) if pixels else none, findings)


def open_gallery(path: str, size: int, geometry: str) -> Gallery:
    """Open the images at a path; `size` (in pixels) and `geometry` are what the model takes.

    Raises:
        UserError: nothing there, no picture in it, or an IMAGES table of another size or geometry.
    """
    if storage.exists(storage.join(path, CARD)):
        return _table(open_images(path), size, geometry)
    files = archives.list_files(path)
    safe = [member for member in files.members if member.is_safe]
    result = [member for member in safe if member.is_image]
    metadata = _metadata(path, safe)
    left_out = _left_out(files, {*result}, {*metadata["file"]})
    if not result and layouts.recognise(safe) == "huggingface":
        raise UserError(
            f"--images {path}: pictures packed in Parquet; make a table of them first: jobs/ingest.py {path}"
        )
    if not result:
        raise UserError(f"--images {path}: no picture in it ({', '.join(formats.READ)}); found {_kinds(left_out)}")
    named, copies = _named(result)
    known = metadata.reindex(list(named)).reset_index(names="image_id")
    signature = files.signature + ("heic" if _needs_heic(result) else "")
    return FileGallery(
        completed(known), signature, list(named.values()), size, geometry, [*left_out, *copies], files.hidden
    )


def thumbnails(path: str, image_ids: list[str], size: int = 96) -> dict[str, bytes]:
    """Make small JPEGs, by image_id, of those of these images that are at `path`; at most `size` pixels a side."""
    if storage.exists(storage.join(path, CARD)):
        return images.thumbnails(open_images(path), image_ids, size)
    gallery = open_gallery(path, size, "crop")
    result: dict[str, bytes] = {}
    for number in np.flatnonzero(gallery.rows["image_id"].isin(image_ids)):
        loaded = gallery.load(slice(int(number), int(number) + 1))
        result |= {
            i: images.small_jpeg(pixels, size) for i, pixels in zip(loaded.image_ids, loaded.pixels, strict=True)
        }
    return result


def _table(table: Images, size: int, geometry: str) -> TableGallery:
    own = (table.size, table.card["geometry"])
    if own != (size, geometry):
        raise UserError(
            f"--images {table.uri}: a table of {own[0]} px ({own[1]}), the model takes {size} px ({geometry}); give "
            "the archive itself, or ingest it so"
        )
    return TableGallery(table)


def _named(members: list[Member]) -> tuple[dict[str, Member], list[Finding]]:
    """Name files by image_id, sorted; copies of the same bytes are one image, and the other copies are findings.

    An image_id is the name without folder and suffix where no two files share it, else the path.
    """
    same: dict[str, list[Member]] = {}
    for member in members:
        same.setdefault(member.image_id, []).append(member)
    named = {image_id: copies[0] for image_id, copies in same.items() if len(copies) == 1 or _equal(copies)}
    different = [member for image_id, copies in same.items() if image_id not in named for member in copies]
    for member in different:
        alike = (f"{member.label} ({number})" for number in itertools.count(2))
        named[next(name for name in itertools.chain([member.label], alike) if name not in named)] = member
    copies = [
        Finding(copy.label, image_id, "copy", f"the same bytes as {named[image_id].label}, predicted once")
        for image_id, members in same.items()
        if image_id in named and members[0] is named[image_id]
        for copy in members[1:]
    ]
    return dict(sorted(named.items())), copies


def _equal(copies: list[Member]) -> bool:
    """Say whether files hold the same bytes; False where one of them cannot be read."""
    try:
        return archives.same_content(copies)
    except archives.UnreadableMember:
        return False


def _metadata(path: str, members: list[Member]) -> pd.DataFrame:
    """Read what an archive's metadata says, by image_id, and the `file` it stands in; empty for a folder without."""
    if layouts.recognise(members) is None:
        return pd.DataFrame({"file": []})
    return once(layouts.open_archive(path).metadata).set_index("image_id")


def _left_out(files: Files, images: set[Member], metadata: set[str]) -> list[Finding]:
    """List what an archive holds beside images and their metadata, as lines of quarantine.csv."""
    return [Finding(entry.file, entry.image_id, entry.reason, entry.detail) for entry in files.skipped] + [
        _beside(member) for member in files.members if member not in images and member.label not in metadata
    ]


def _beside(member: Member) -> Finding:
    if not member.is_safe:
        return Finding(member.label, "", "unsafe name", "leads out of the archive; not read")
    if member.is_mask:
        return Finding(member.label, "", "segmentation mask", "the outline of a lesion, no image of it")
    suffix = Path(member.label).suffix.lower()
    if suffix == ".zip":
        return Finding(member.label, "", "zip", "a zip inside is not read: unpack it")
    return Finding(member.label, "", "no picture", suffix or "neither its name nor its content is a picture's")


def _kinds(findings: list[Finding]) -> str:
    """Count what was left out by suffix, in words."""
    suffixes = Counter(Path(finding.file).suffix.lower() or "no suffix" for finding in findings)
    return ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5)) or "nothing else"


def _needs_heic(members: list[Member]) -> bool:
    """Say whether the package for HEIC is installed and one of these files needs it."""
    return "HEIF" in pictures.readers() and any(
        member.file_name.lower().endswith((".heic", ".heif", ".hif")) for member in members
    )
