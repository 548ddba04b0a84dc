"""What is wrong with rows and files: each finding is one line of quarantine.csv."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from ham_ray.data.datasets import UNPUBLISHED
from ham_ray.data.layouts import Archive
from ham_ray.data.metadata import COLUMNS
from ham_ray.errors import UserError

COMMON_SIZE_SHARE = 0.9
# Images of one lesion that are nothing odd, however small the archive: HAM10000 has at most 6, follow-up some more.
USUAL_LESION = 20


class Finding(NamedTuple):
    """One file or metadata row that was left out. `image_id` may be empty."""

    file: str
    image_id: str
    reason: str
    detail: str

    @property
    def subject(self) -> str:
        """The image (or file) that counts once in the fraction of quarantined ones, however many findings it has."""
        return self.image_id or self.file


def to_csv(findings: Iterable[Finding]) -> bytes:
    """Write findings as quarantine.csv: sorted, UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Finding._fields)
    writer.writerows(sorted(set(findings)))
    return text.getvalue().encode(errors="backslashreplace")


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Count the images (or files) left out by reason, the most frequent first."""
    pairs = {(finding.subject, finding.reason) for finding in findings}
    return dict(Counter(reason for _, reason in sorted(pairs)).most_common())


def refusable(findings: Iterable[Finding]) -> int:
    """Count the images (or files) left out, but those that were never published."""
    return len({finding.subject for finding in findings} - UNPUBLISHED)


def check_metadata(archive: Archive) -> tuple[pd.DataFrame, list[Finding]]:
    """Split an archive into the rows of metadata that can be used and findings on all else.

    Rows that can be used have a known diagnosis, a file, and a lesion where the data set needs one; they are one an
    image, sorted by image_id.
    """
    metadata = archive.metadata.drop_duplicates(list(COLUMNS))
    problems = _problems(metadata, archive)
    bad = np.array([problem is not None for problem in problems], bool)
    places = zip(metadata["file"], metadata["image_id"], problems, strict=True)
    findings = [Finding(file, image_id, *problem) for file, image_id, problem in places if problem]
    findings += _unlabelled(archive)
    findings += [
        Finding(member.label, "", "unsafe name", "leads out of the archive; not read") for member in archive.unsafe
    ]
    findings += [Finding(entry.file, entry.image_id, entry.reason, entry.detail) for entry in archive.skipped]
    return metadata[~bad].sort_values("image_id", ignore_index=True), findings


def _problems(metadata: pd.DataFrame, archive: Archive) -> list[tuple[str, str] | None]:
    repeated = metadata["image_id"].duplicated(keep=False)
    # Official test sets come without lesions; training images without them could not be split without leakage.
    with_lesions = {"training", *metadata["partition"][metadata["lesion_id"] != ""]}
    needs_lesion = metadata["partition"].isin(with_lesions) & archive.dataset.has_lesions
    rows = zip(metadata["image_id"], metadata["lesion_id"], metadata["dx"], repeated, needs_lesion, strict=True)
    return [_problem(*row, archive) for row in rows]


def _problem(
    image_id: str, lesion_id: str, dx: str, repeated: bool, needs_lesion: bool, archive: Archive
) -> tuple[str, str] | None:
    required = {"image_id": image_id, "dx": dx} | ({"lesion_id": lesion_id} if needs_lesion else {})
    empty = [name for name, value in required.items() if not value]
    if empty:
        return f"no {', '.join(empty)}", "its cell is empty or means missing"
    if dx not in archive.classes.codes:
        near, known = archive.classes.nearest(dx), ", ".join(archive.classes.codes)
        return "unknown diagnosis", f"{dx!r}; " + (f"nearest is {near}" if near else f"known: {known}")
    if repeated:
        return "conflicting metadata", "its rows differ"
    if image_id not in archive.images:
        return "no image", "never published by ISIC" if image_id in UNPUBLISHED else "a row without a file"
    return None


def refuse_large_lesion(image_ids: pd.Series, lesions: pd.Series, most: float) -> None:
    """Refuse a lesion with more than the fraction `most` of all images: a word for "not known" taken for an id.

    All its images would be in one fold. `lesions` are ids or groups, "" where there is none.

    Raises:
        UserError: there is such a lesion of more than `USUAL_LESION` images.
    """
    counts = lesions[lesions != ""].value_counts()
    limit = max(USUAL_LESION, most * len(lesions))
    if counts.empty or counts.iloc[0] <= limit:
        return
    name, count = counts.index[0], counts.iloc[0]
    some = ", ".join(image_ids[lesions == name].head(3))
    raise UserError(
        f"lesion {name!r} has {count:,} of {len(lesions):,} images ({some}, …), by lesion_id or as they share their "
        "pixels: all would be in one fold. Empty its cells where nobody knows the lesion; if it is one in truth, raise "
        f"--max-lesion {most:g}"
    )


def _unlabelled(archive: Archive) -> list[Finding]:
    known = set(archive.metadata["image_id"])
    return [
        Finding(member.label, image_id, "no metadata", "a file without a row")
        for image_id, members in archive.images.items()
        if image_id not in known
        for member in members
    ]


def check_sizes(rows: pd.DataFrame) -> list[Finding]:
    """Make a finding of each image whose width and height differ from the size that at least nine in ten share.

    In a mixed archive, where no size is so common, there are none.
    """
    sizes = rows["width"].astype(str) + "×" + rows["height"].astype(str)
    common, count = Counter(sizes).most_common(1)[0]
    if count < COMMON_SIZE_SHARE * len(rows):
        return []
    every = zip(rows["file"], rows["image_id"], sizes, strict=True)
    return [Finding(f, i, "wrong size", f"{size}, the others are {common}") for f, i, size in every if size != common]
