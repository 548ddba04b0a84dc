"""What the cells of a metadata table say: words for "missing", one spelling of an id, ages as numbers."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection

import pandas as pd

from ham_ray.data import formats
from ham_ray.data.classes import Classes, code

# One list for all columns, in lower case. A lesion of such a "name" would put unrelated images into one fold.
MISSING = frozenset(
    (
        *("", "-", "--", "---", "–", "—", ".", "?"),
        *("nan", "na", "n/a", "n.a.", "n.a", "#n/a", "#na", "<na>", "nat", "none", "null", "nil"),
        *("unknown", "unk", "undefined", "unspecified", "missing", "empty", "no data"),
        *("not available", "not applicable", "not given", "not known", "not specified"),
    )
)
_ZEROS = frozenset(("0", "0.0", "-1", "-1.0"))  # missing as an id, unless ids are numbers
AGES = (0.0, 120.0)  # years
_AGE = re.compile(
    r"(\d+(?:[.,]\d+)?)\s*(y|yr|yrs|yo|y/o|year|years|years old|a|mo|mos|month|months)?\.?", re.IGNORECASE
)
_SEXES = {"m": "male", "man": "male", "f": "female", "woman": "female"}


def cleaned(metadata: pd.DataFrame, classes: Classes | None) -> tuple[pd.DataFrame, list[str]]:
    """Write "" wherever a word in metadata (strings) means missing; and note what was read as something else.

    Ids have one spelling, ages are plain numbers of years or "", diagnoses of `classes` are codes; others stay as they
    are. Without `classes` each name of a diagnosis is a class and becomes its code.
    """
    table = metadata.apply(lambda column: column.where(~column.str.lower().isin(MISSING), ""))
    notes: list[str] = []
    for name, change in _COLUMNS.items():
        if name in table:
            table[name], said = change(table[name])
            notes += said
    if "dx" in table:
        table["dx"], said = diagnoses(table["dx"], classes)
        notes += said
    return table, notes


def diagnoses(column: pd.Series, classes: Classes | None) -> tuple[pd.Series, list[str]]:
    """Turn diagnoses into codes, unknown ones into lower case; and note which other names than codes were read."""
    if classes is None:
        return column.map(code), []
    codes = {text: classes.code_of(text) for text in column.unique()}
    read = Counter(text for text in column if codes[text] and text.lower() != codes[text])
    said = ", ".join(f"{text!r} as {codes[text]} ({count:,})" for text, count in read.most_common())
    return column.map(lambda text: codes[text] or text.lower()), [f"diagnoses read: {said}"] if said else []


def _images(column: pd.Series) -> tuple[pd.Series, list[str]]:
    return _whole(column), []


def _lesions(column: pd.Series) -> tuple[pd.Series, list[str]]:
    """Write each id in one spelling.

    Ids that differ in case alone are one lesion; as two they could leak across folds.
    """
    column = _whole(column)
    values = column[(column != "") & ~column.isin(_ZEROS)]
    if not values.str.fullmatch(r"\d+").all():
        column = column.where(~column.isin(_ZEROS), "")
    spellings = column.groupby(column.str.casefold()).min()
    spelled = column.str.casefold().map(spellings)
    if not (changed := spelled != column).any():
        return column, []
    example = f"{column[changed].iloc[0]!r} as {spelled[changed].iloc[0]!r}"
    return spelled, [
        f"{changed.sum():,} lesion ids differ from others in upper and lower case alone: read {example}, …"
    ]


def _whole(column: pd.Series) -> pd.Series:
    """Write `123.0` as `123` where all ids are so: numbers that went through a spreadsheet or a table of floats."""
    values = column[column != ""]
    floats = len(values) and values.str.fullmatch(r"\d+\.0+").all()
    return column.str.replace(r"\.0+$", "", regex=True) if floats else column


def _ages(column: pd.Series) -> tuple[pd.Series, list[str]]:
    ages = {text: years(text) for text in column.unique()}
    refused = Counter(text for text in column if text and ages[text] is None)
    read = column.map(lambda text: "" if ages[text] is None else text if _plain(text) else repr(ages[text]))
    if not refused:
        return read, []
    said = ", ".join(f"{text!r} ({count:,})" for text, count in refused.most_common(5))
    more = ", …" if len(refused) > 5 else ""
    return read, [f"{refused.total():,} ages are none from {AGES[0]:g} to {AGES[1]:g} years, left empty: {said}{more}"]


def years(text: str) -> float | None:
    """Read an age in years: a number, also with a decimal comma and a unit (years, months).

    Returns:
        None for anything else, and for an age outside `AGES`.
    """
    if match := _AGE.fullmatch(text.strip()):
        value = float(match[1].replace(",", "."))
        value = value / 12 if (match[2] or "").lower().startswith("m") else value
    else:
        try:
            value = float(text)
        except ValueError:
            return None
    return value if math.isfinite(value) and AGES[0] <= value <= AGES[1] else None


def _plain(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None


def _sexes(column: pd.Series) -> tuple[pd.Series, list[str]]:
    lower = column.str.lower()
    return lower.replace(_SEXES), []


_COLUMNS: dict[str, Callable[[pd.Series], tuple[pd.Series, list[str]]]] = {
    "image_id": _images,
    "lesion_id": _lesions,
    "age": _ages,
    "sex": _sexes,
}


def match_ids(ids: pd.Series, known: Collection[str]) -> tuple[pd.Series, list[str]]:
    """Write image ids as `known` spells them, and note how many were read so.

    An id is changed only where exactly one known id differs from it by case or a picture's suffix alone.
    """
    strange = set(ids[~ids.isin(list(known)) & (ids != "")])
    near: dict[str, list[str]] = defaultdict(list)
    if strange:
        for name in set(known) - set(ids):
            near[loose(name)].append(name)
    result = {name: near[loose(name)][0] for name in strange if len(near[loose(name)]) == 1}
    times = Counter(result.values())
    result = {old: new for old, new in sorted(result.items()) if times[new] == 1}
    if not result:
        return ids, []
    old, new = next(iter(result.items()))
    note = f"{len(result):,} image ids differ in case or suffix alone: read {old!r} as {new!r}"
    return ids.map(lambda name: result.get(name, name)), [note + (", …" if len(result) > 1 else "")]


def loose(image_id: str) -> str:
    """Reduce an image id to what all its spellings share: no case, no suffix, one way to write an umlaut."""
    folded = unicodedata.normalize("NFC", image_id).casefold()
    suffix = next((suffix for suffix in (*formats.SUFFIXES, ".0") if folded.endswith(suffix)), "")
    return folded.removesuffix(suffix)
