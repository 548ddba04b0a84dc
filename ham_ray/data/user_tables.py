"""The one reader of tables that people bring: metadata, diagnoses and predictions, as spreadsheets save them."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ham_ray.errors import UserError

_SEPARATORS = ",;\t|"
_MARKED = (  # a byte order mark names the encoding; UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PARQUET = b"PAR1"
_SAVE_AS_CSV = "save it as CSV (UTF-8)"
_FOREIGN = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (.xls)", _SAVE_AS_CSV),
    (b"\x1f\x8b", "compressed (gzip)", "unpack it"),
    (b"%PDF", "a PDF", _SAVE_AS_CSV),
    (b"version https://git-lfs", "a pointer of Git LFS, the table itself was not downloaded", "run git lfs pull"),
    (b"{", "JSON", _SAVE_AS_CSV),
    (b"[", "JSON", _SAVE_AS_CSV),
    (b"<", "a page of HTML or XML, such as a login page", "download it again, or " + _SAVE_AS_CSV),
)
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))  # zero-width, left by copying from web pages


def read_table(data: bytes, label: str) -> pd.DataFrame:
    """Read delimited text or Parquet as a table of strings, "" where empty.

    Comma, semicolon, tab or bar separates, whichever the header has most; text is UTF-8, UTF-16, UTF-32 or else
    Windows-1252. Blanks around cells and column names are cut off. Rows without any value and columns without a name
    are left out: spreadsheets add such.

    Args:
        data: the file's bytes.
        label: its name, for messages.

    Raises:
        UserError: no table; with what it is, or with the lines that do not fit, and what to do.
    """
    if data.startswith(_PARQUET):
        return _parquet(data, label)
    _refuse_foreign(data, label)
    text = _decoded(data, label)
    header, *rows = _rows(text, label)
    names = [_one_line(name) for name in header]
    _refuse_repeated(names, label)
    cells = [[_clean(cell) for cell in row] for row in rows]
    table = pd.DataFrame(cells, columns=range(len(names)), dtype=object)
    named = [index for index, name in enumerate(names) if name]
    return table[named].set_axis([names[index] for index in named], axis=1)


def numbers(column: pd.Series) -> pd.Series:
    """Read cells as floats, also with a decimal comma; empty ones become None, and words stay as they are."""
    texts = column.where(~column.str.fullmatch(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?"), column.str.replace(",", "."))
    values = pd.to_numeric(texts.replace("", None), errors="coerce")
    return values.astype(object).where(values.notna(), column.replace("", None))


def _refuse_foreign(data: bytes, label: str) -> None:
    if data.startswith(b"PK\x03\x04"):
        workbook = b"[Content_Types].xml" in data[:4096] or b"xl/" in data[:4096] or b"opendocument" in data[:4096]
        what, remedy = ("an Excel or OpenDocument workbook", _SAVE_AS_CSV) if workbook else ("a zip file", "unpack it")
        raise UserError(f"cannot read {label}: it is {what}; {remedy}")
    for magic, what, remedy in _FOREIGN:
        if data.lstrip().startswith(magic):
            raise UserError(f"cannot read {label}: it is {what}; {remedy}")


def _decoded(data: bytes, label: str) -> str:
    for encoding in _encodings(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UserError(f"cannot read {label}: it is no text in UTF-8, UTF-16 or Windows-1252; {_SAVE_AS_CSV}")


def _encodings(data: bytes) -> tuple[str, ...]:
    for mark, encoding in _MARKED:
        if data.startswith(mark):
            return (encoding,)
    start = data[:200]
    if start.count(0) > len(start) // 4:  # Latin letters in UTF-16: every second byte is 0
        return ("utf-16-le",) if start[1::2].count(0) > start[::2].count(0) else ("utf-16-be",)
    return ("utf-8", "cp1252")


def _rows(text: str, label: str) -> list[list[str]]:
    """Split text into the rows that hold anything, the header first, each with as many cells as the header."""
    separator = _separator(text)
    rows: list[list[str]] = []
    ragged: list[str] = []
    for line, row in _parsed(text, separator, label):
        if not any(map(_clean, row)) or (not rows and row[0].lower().startswith("sep=")):
            continue
        width = len(rows[0]) if rows else len(row)
        while len(row) > width and not _clean(row[-1]):
            row.pop()
        if len(row) != width:
            ragged.append(f"line {line} has {len(row)} fields")
        rows.append(row)
    if not rows:
        raise UserError(f"cannot read {label}: it is empty")
    if ragged:
        more = f" and {len(ragged) - 3} more" if len(ragged) > 3 else ""
        raise UserError(
            f"cannot read {label}: {', '.join(ragged[:3])}{more}, the header has {len(rows[0])}; put values that hold "
            f"a {separator!r} in quotes, or mend these lines"
        )
    return rows


def _separator(text: str) -> str:
    """Return what separates the header's fields; Excel may name it in a first line `sep=;`."""
    header = re.match(r"\s*([^\r\n]*)", text)
    bare = re.sub(r'"[^"]*"', "", header[1] if header else "")
    named = re.fullmatch(r"sep=(.)\s*", bare, re.IGNORECASE)
    return named[1] if named else max(_SEPARATORS, key=bare.count)


def _parsed(text: str, separator: str, label: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line it ends on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(
            f"cannot read {label}: line {reader.line_num}: {error}; is a quote left open, or is it no table?"
        ) from None


def _clean(cell: str) -> str:
    return cell.translate(_INVISIBLE).strip()  # str.strip knows the no-break space


def _one_line(name: str) -> str:
    """Write a column's name as messages can show it."""
    return " ".join("".join(letter for letter in _clean(name) if letter.isprintable() or letter.isspace()).split())


def _refuse_repeated(names: list[str], label: str) -> None:
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names, start=1):
        places.setdefault(name.casefold(), []).append(index)
    for name, result in places.items():
        if name and len(result) > 1:
            raise UserError(
                f"cannot read {label}: columns {' and '.join(map(str, result))} are both named {name}; delete one"
            )


def _parquet(data: bytes, label: str) -> pd.DataFrame:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {label}: {' '.join(str(error).split())}") from None
    return text_columns(table)


def text_columns(table: pa.Table) -> pd.DataFrame:
    """Return those columns of an Arrow table that can be written as text, as strings; "" where null.

    Raises:
        UserError: two columns have the same name, but for upper and lower case.
    """
    result = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            texts = column.cast(pa.string())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            continue  # pictures, lists
        result[_one_line(name)] = [_clean(text or "") for text in texts.to_pylist()]
    _refuse_repeated(list(result), "the table")
    return pd.DataFrame(result, dtype=object)
