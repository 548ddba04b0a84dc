"""Reading metadata files of archives: tables as strings, and the one-hot tables of ISIC's challenges."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from ham_ray.data import archives, user_tables
from ham_ray.data.archives import Member
from ham_ray.data.classes import Classes
from ham_ray.errors import UserError

COLUMNS = ("image_id", "lesion_id", "dx", "partition", "age", "sex", "localization", "dx_type", "fold")
NO_CLASS = "(of no class)"  # dx of images that are left out because a data set says that they are of none
REQUIRED = ("image_id", "lesion_id", "dx")
_METADATA = re.compile(r".*metadata.*", re.IGNORECASE)
_TABLE = re.compile(r".*\.(csv|tsv|tab|txt|xlsx?|ods|json|jsonl|parquet)", re.IGNORECASE)
LABEL_NAMES = {"isic_id": "image_id", "image": "image_id", "image_name": "image_id", "diagnosis": "dx", "label": "dx"}


def named(members: list[Member], pattern: re.Pattern[str]) -> list[Member]:
    """Return the files whose name matches the pattern, the least deep first."""
    matching = [member for member in members if pattern.fullmatch(member.file_name)]
    return sorted(matching, key=lambda member: (member.label.count("/"), member.label))


def by_partition(members: Iterable[Member], pattern: re.Pattern[str]) -> dict[str, Member]:
    """Map official partitions, the first group of the pattern in lower case, to files; the last of several counts."""
    matches = [(pattern.fullmatch(member.file_name), member) for member in members]
    return {match[1].lower(): member for match, member in matches if match}


def to_csv(rows: list[dict[str, str]]) -> bytes:
    """Write rows of the same keys as CSV with a header, UTF-8."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read_table(member: Member) -> pd.DataFrame:
    """Read a table as strings, column names in lower case.

    Raises:
        UserError: the file cannot be read, or is no table.
    """
    try:
        table = user_tables.read_table(archives.read(member), member.label)
    except archives.UnreadableMember as error:
        raise UserError(f"cannot read {member.label}: {error}") from None
    return table.rename(columns=str.lower)


def require(table: pd.DataFrame, member: Member, names: tuple[str, ...]) -> None:
    """Refuse a table that lacks one of these columns.

    Raises:
        UserError: with the columns that are there.
    """
    if missing := [name for name in names if name not in table]:
        there = ", ".join(name[:40] for name in table.columns[:12]) + ", …" * (len(table.columns) > 12)
        raise UserError(f"{member.label} has no column {', '.join(missing)}; its columns: {there}")


def one_hot(table: pd.DataFrame, classes: Classes) -> dict[str, str]:
    """Map the columns of ones and zeros to classes: by any name of theirs, others (SCC, UNK) to their own."""
    columns = {}
    for name in table.columns:
        code = classes.code_of(name)
        other = name != "image" and not name.endswith("_weight")  # of a scorer
        if code or (other and set(table[name]) <= {"0", "1", "0.0", "1.0"}):
            columns[name] = code or name
    return columns


def read_one_hot(member: Member, partition: str, classes: Classes, required: tuple[str, ...]) -> pd.DataFrame:
    """Read a ground truth of a challenge, `image` and a column a class, as image_id, dx, partition and file.

    Two classes at once read "mel+nv", an unknown diagnosis; none at all reads "", none.

    Raises:
        UserError: a class of `required` has no column.
    """
    table = read_table(member)
    columns = one_hot(table, classes)
    require(table.rename(columns=columns), member, ("image", *required))
    chosen = table[list(columns)].apply(lambda column: pd.to_numeric(user_tables.numbers(column), errors="coerce")) == 1
    dx = chosen.apply(lambda row: "+".join(columns[name] for name in columns if row[name]), axis=1)
    return pd.DataFrame({"image_id": table["image"], "dx": dx, "partition": partition, "file": member.label}, dtype=str)


def hint(members: list[Member]) -> str:
    """List what an archive without metadata holds: first what may be meant as metadata, which pictures would hide."""
    inner = [member.label for member in members if re.search(r"\.(zip|parquet)$", member.name, re.IGNORECASE)]
    if inner and members[0].place is not None:
        return f"unpack the outer zip first: it holds {inner[0]}"
    tables = sorted(
        (member for member in members if _TABLE.fullmatch(member.file_name)),
        key=lambda member: (not _METADATA.fullmatch(member.file_name), member.label.count("/"), member.label),
    )
    pictures = sum(member.is_image for member in members)
    tops = Counter(member.label.partition("/")[0] for member in members if "/" in member.label and member not in tables)
    rest = [
        member.label for member in members if "/" not in member.label and member not in tables and not member.is_image
    ]
    there = [*(f"{member.label}{_columns(member)}" for member in tables[:3]), *(f"{top}/" for top in tops), *rest]
    counted = [f"{pictures:,} pictures"] if pictures else []
    return f"found {', '.join([*there[:5], *(['…'] if len(there) > 5 else []), *counted])}"


def _columns(member: Member) -> str:
    """Name the columns of a table, or say why it cannot be read."""
    try:
        return f" (columns {', '.join(name[:40] for name in read_table(member).columns[:8])})"
    except UserError as error:
        return f" ({error})"
