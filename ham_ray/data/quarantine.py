"""What is wrong with rows and files: each finding is one line of quarantine.csv."""

from __future__ import annotations

import csv
import difflib
import io
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from ham_ray.data.layouts import COLUMNS, Archive
from ham_ray.diagnoses import CODES

# The ISIC test set's control image has a row in the ground truth and was never published: no fault of the archive.
NEVER_PUBLISHED = frozenset({"ISIC_0035068"})
COMMON_SIZE_SHARE = 0.9


class Finding(NamedTuple):
    """One file or metadata row that was left out. `image_id` may be empty."""

    file: str
    image_id: str
    reason: str
    detail: str

    @property
    def subject(self) -> str:
        """What the fraction of quarantined things counts once, however many findings it has."""
        return self.image_id or self.file


def to_csv(findings: Iterable[Finding]) -> bytes:
    """quarantine.csv, sorted, UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Finding._fields)
    writer.writerows(sorted(set(findings)))
    return text.getvalue().encode(errors="backslashreplace")


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Images (or files) left out by reason, the most frequent first."""
    pairs = {(finding.subject, finding.reason) for finding in findings}
    return dict(Counter(reason for _, reason in sorted(pairs)).most_common())


def refusable(findings: Iterable[Finding]) -> int:
    """How many images fell out, without those that nobody can have."""
    return len({finding.subject for finding in findings} - NEVER_PUBLISHED)


def check_metadata(archive: Archive) -> tuple[pd.DataFrame, list[Finding]]:
    """The rows with a diagnosis, a lesion and at least one file, one an image, sorted by image_id; and the others."""
    metadata = archive.metadata.copy()
    metadata["dx"] = metadata["dx"].str.lower()
    metadata = metadata.drop_duplicates(list(COLUMNS))
    problems = _problems(metadata, archive)
    bad = np.array([problem is not None for problem in problems], bool)
    places = zip(metadata["file"], metadata["image_id"], problems, strict=True)
    findings = [Finding(file, image_id, *problem) for file, image_id, problem in places if problem]
    findings += _unlabelled(archive)
    findings += [
        Finding(member.label, "", "unsafe name", "leads out of the archive; not read") for member in archive.unsafe
    ]
    return metadata[~bad].sort_values("image_id", ignore_index=True), findings


def _problems(metadata: pd.DataFrame, archive: Archive) -> list[tuple[str, str] | None]:
    repeated = metadata["image_id"].duplicated(keep=False)
    # Official test sets come without lesions; training images without them could not be split without leakage.
    with_lesions = {"training", *metadata["partition"][metadata["lesion_id"] != ""]}
    needs_lesion = metadata["partition"].isin(with_lesions)
    rows = zip(metadata["image_id"], metadata["lesion_id"], metadata["dx"], repeated, needs_lesion, strict=True)
    return [_problem(*row, archive) for row in rows]


def _problem(
    image_id: str, lesion_id: str, dx: str, repeated: bool, needs_lesion: bool, archive: Archive
) -> tuple[str, str] | None:
    required = {"image_id": image_id, "dx": dx} | ({"lesion_id": lesion_id} if needs_lesion else {})
    empty = [name for name, value in required.items() if not value]
    if empty:
        return "empty value", f"no {', '.join(empty)} in its row"
    if dx not in CODES:
        near = difflib.get_close_matches(dx, CODES, n=1, cutoff=0.3)
        return "unknown diagnosis", f"{dx!r}" + (f"; nearest is {near[0]}" if near else f"; known: {', '.join(CODES)}")
    if repeated:
        return "conflicting metadata", "its rows differ"
    if image_id not in archive.images:
        return "no image", "never published by ISIC" if image_id in NEVER_PUBLISHED else "a row without a file"
    return None


def _unlabelled(archive: Archive) -> list[Finding]:
    known = set(archive.metadata["image_id"])
    return [
        Finding(member.label, image_id, "no metadata", "a file without a row")
        for image_id, members in archive.images.items()
        if image_id not in known
        for member in members
    ]


def check_sizes(rows: pd.DataFrame) -> list[Finding]:
    """Images whose width and height differ from the size that at least nine in ten share; none in a mixed archive."""
    sizes = rows["width"].astype(str) + "×" + rows["height"].astype(str)
    common, count = Counter(sizes).most_common(1)[0]
    if count < COMMON_SIZE_SHARE * len(rows):
        return []
    every = zip(rows["file"], rows["image_id"], sizes, strict=True)
    return [Finding(f, i, "wrong size", f"{size}, the others are {common}") for f, i, size in every if size != common]
