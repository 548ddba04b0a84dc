"""Metadata as the ISIC archive's own tool writes it (`isic image download`), in HAM10000's columns."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from ham_ray.data import cells
from ham_ray.diagnoses import code_of

_COLUMNS = {
    "isic_id": "image_id",
    "age_approx": "age",
    "anatom_site_general": "localization",
    "diagnosis_confirm_type": "dx_type",
}
_DIAGNOSES = (
    "diagnosis_5",
    "diagnosis_4",
    "diagnosis_3",
    "diagnosis_2",
    "diagnosis_1",
    "diagnosis",
)  # the deepest first
_CONFIRMATIONS = {"confocal": "confocal", "histo": "histo", "serial": "follow_up", "consensus": "consensus"}
# HAM10000 with its official validation and test sets. There the archive calls Bowen's disease "Squamous cell carcinoma,
# NOS" (197 of 327 akiec); among other images that name is a class that HAM10000 does not have.
_HAM_FIRST, _HAM_LAST_TRAINING, _HAM_LAST = "ISIC_0024306", "ISIC_0034320", "ISIC_0036064"
_HAM_BOWEN = "squamous cell carcinoma, nos"


def is_export(columns: set[str]) -> bool:
    """Whether a table with these columns (lower case) is such metadata."""
    return "isic_id" in columns and not columns.isdisjoint(_DIAGNOSES)


def in_ham_columns(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The table with image_id, dx, age, localization and dx_type; `notes` grows by what to beware of.

    dx is the deepest diagnosis that is one of the seven, or else the deepest there is.
    """
    levels = [name for name in _DIAGNOSES if name in table]
    dx = [_diagnosis(row[0], row[1:]) for row in table[["isic_id", *levels]].itertuples(index=False)]
    table = table.drop(columns=["dx", *_COLUMNS.values()], errors="ignore").rename(columns=_COLUMNS).assign(dx=dx)
    if "dx_type" in table:
        table["dx_type"] = table["dx_type"].map(confirmation)
    official = table["image_id"].between(_HAM_LAST_TRAINING, _HAM_LAST, inclusive="right").sum()
    if official:
        notes.append(
            f"{official:,} images are of ISIC 2018's official validation and test sets and are treated as any other: "
            "a model trained on them cannot be compared on these sets"
        )
    if "image_type" in table and (others := Counter(kind for kind in table["image_type"] if kind != "dermoscopic")):
        said = ", ".join(f"{kind or 'type not said'} ({count:,})" for kind, count in others.most_common())
        notes.append(f"{others.total():,} images are not dermoscopic and are kept: {said}")
    return table


def confirmation(text: str) -> str:
    """ISIC's sentence on how the label was made, in HAM10000's word."""
    return next((word for key, word in _CONFIRMATIONS.items() if key in text.lower()), text)


def _diagnosis(image_id: str, levels: tuple[str, ...]) -> str:
    given = [text for text in levels if text.lower() not in cells.MISSING]
    for text in given:
        if code := code_of(text):
            return code
    if _HAM_BOWEN in map(str.lower, given) and _HAM_FIRST <= image_id <= _HAM_LAST:
        return "akiec"
    return given[0] if given else ""
