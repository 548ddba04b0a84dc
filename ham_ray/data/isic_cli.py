"""Metadata as the ISIC archive's own tool writes it (`isic image download`), in the columns of `metadata`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pandas as pd

from ham_ray.data import cells
from ham_ray.data.archives import Member
from ham_ray.data.metadata import named, read_table
from ham_ray.errors import UserError

_COLUMNS = {
    "isic_id": "image_id",
    "age_approx": "age",
    "anatom_site_general": "localization",
    "diagnosis_confirm_type": "dx_type",
}
_LEVELS = ("diagnosis_5", "diagnosis_4", "diagnosis_3", "diagnosis_2", "diagnosis_1", "diagnosis")  # the deepest first
_CONFIRMATIONS = {"confocal": "confocal", "histo": "histo", "serial": "follow_up", "consensus": "consensus"}
_METADATA = re.compile(r".*metadata.*", re.IGNORECASE)


def is_export(columns: set[str]) -> bool:
    """Say whether a table with these columns (lower case) is metadata of ISIC's own tool."""
    return "isic_id" in columns and not columns.isdisjoint(_LEVELS)


def metadata_file(members: list[Member]) -> Member | None:
    """Return the least deep file with metadata of ISIC's own tool; None where there is none."""
    for member in named(members, _METADATA):
        if member.file_name.lower().endswith((".csv", ".tsv", ".txt")):
            try:
                if is_export(set(read_table(member).columns)):
                    return member
            except UserError:
                continue  # another table: what cannot be read is said where nothing else fits
    return None


def in_columns(table: pd.DataFrame, code_of: Callable[[str, str], str | None], notes: list[str]) -> pd.DataFrame:
    """Rename the columns of ISIC's own tool to those of `metadata`, and add dx; warnings are appended to `notes`.

    Args:
        code_of: the class of an image (its id) by one of its diagnoses in words; None: it is of no class. dx is the
            deepest diagnosis that has one, or else the deepest there is.
    """
    levels = [name for name in _LEVELS if name in table]
    dx = [_diagnosis(row[0], row[1:], code_of) for row in table[["isic_id", *levels]].itertuples(index=False)]
    table = table.drop(columns=["dx", *_COLUMNS.values()], errors="ignore").rename(columns=_COLUMNS).assign(dx=dx)
    if "dx_type" in table:
        table["dx_type"] = table["dx_type"].map(confirmation)
    if "image_type" in table and (others := Counter(kind for kind in table["image_type"] if kind != "dermoscopic")):
        kinds = ", ".join(f"{kind or 'type not said'} ({count:,})" for kind, count in others.most_common())
        notes.append(f"{others.total():,} images are not dermoscopic and are kept: {kinds}")
    return table


def confirmation(text: str) -> str:
    """Shorten ISIC's sentence on how a label was made to HAM10000's word."""
    return next((word for key, word in _CONFIRMATIONS.items() if key in text.lower()), text)


def _diagnosis(image_id: str, levels: tuple[str, ...], code_of: Callable[[str, str], str | None]) -> str:
    texts = [text for text in levels if text.lower() not in cells.MISSING]
    return next((dx for text in texts if (dx := code_of(image_id, text))), texts[0] if texts else "")
