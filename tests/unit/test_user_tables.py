"""Tables as spreadsheets, scripts and web pages leave them: read as meant, or refused by name with the remedy."""

from __future__ import annotations

import io
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ham_ray.data.user_tables import numbers, read_table
from ham_ray.errors import UserError

pytestmark = pytest.mark.unit
ROWS = [{"image_id": "ISIC_1", "dx": "nv", "site": "Gesäß, links"}, {"image_id": "ISIC_2", "dx": "mel", "site": ""}]


def text(separator: str, quote: bool = True, end: str = "\n") -> str:
    site = '"Gesäß, links"' if quote else "Gesäß, links"
    rows = ("image_id", "dx", "site"), ("ISIC_1", "nv", site), ("ISIC_2", "mel", "")
    return end.join(map(separator.join, rows))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_separator_encoding_and_line_end_gives_the_same_rows(separator, encoding, end):
    table = read_table(text(separator, end=end).encode(encoding), "t.csv")
    assert table.to_dict("records") == ROWS


def test_what_spreadsheets_add_is_left_out():
    lines = (
        "sep=;",
        "\ufeffimage_id ;\u00a0dx;site;;",
        "ISIC_1;nv\u200b;Gesäß, links;;",
        ";;;;",
        "ISIC_2;\u00a0mel;;;",
        ";;",
    )
    assert read_table("\n".join(lines).encode(), "t.csv").to_dict("records") == ROWS


def test_empty_cells_beyond_the_header_are_left_out():
    assert read_table(b"a;b\n1;2;;\n3;4;\n", "t.csv").to_dict("records") == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_an_index_column_without_a_name_is_left_out():
    assert read_table(pd.DataFrame(ROWS).to_csv().encode(), "t.csv").to_dict("records") == ROWS


def test_a_quoted_field_holds_separators_quotes_and_line_ends():
    table = read_table(b'a,b\n"1,5","say ""x""\nand y"\n', "t.csv")
    assert table.to_dict("records") == [{"a": "1,5", "b": 'say "x"\nand y'}]


def test_parquet_is_read_without_its_pictures():
    table = pa.table(
        {
            "n": pa.array([1, None], pa.int64()),
            "x": [0.5, None],
            "dx": pa.array(["nv", "mel"]).dictionary_encode(),
            "image": pa.array([{"bytes": b"\xff"}, None]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    found = read_table(buffer.getvalue(), "t.parquet")
    assert found.to_dict("records") == [{"n": "1", "x": "0.5", "dx": "nv"}, {"n": "", "x": "", "dx": "mel"}]


def workbook() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("[Content_Types].xml", "")
        file.writestr("xl/workbook.xml", "")
    return buffer.getvalue()


def plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("t.csv", "a,b")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (workbook(), r"it is an Excel or OpenDocument workbook; save it as CSV \(UTF-8\)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), r"an Excel workbook \(\.xls\); save it as CSV"),
        (plain_zip(), "a zip file; unpack it"),
        (b"\x1f\x8b\x08", "compressed .gzip.; unpack it"),
        (b"  <!DOCTYPE html><html>", "a page of HTML or XML, such as a login page; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS.*; run git lfs pull"),
        (b'{"a": 1}', "JSON; save it as CSV"),
        (b"PAR1 and no more", "cannot read t.csv: "),
        (b"a,b\n1,2\n3,\0\n" + b"5,6\n" * 9, "no text in UTF-8, UTF-16 or Windows-1252"),
        (bytes(range(256)), "no text in UTF-8, UTF-16 or Windows-1252"),
        (b"", "it is empty"),
        (b"\n,,\n \n", "it is empty"),
        (b"a,b\n1,2\n3\n4,5\n6,7,8\n", "line 3 has 1 fields, line 5 has 3 fields, the header has 2"),
        (b"sep=;\n\na;b\n1;2\n3\n", "line 5 has 1 fields, the header has 2"),
        (b'[{"a": 1}]', "JSON; save it as CSV"),
        (b'a,b\n1,"2\n3,4\n', "line 3: unexpected end of data; is a quote left open"),
        (b"image_id,dx,DX\n1,2,3\n", "columns 2 and 3 are both named dx; delete one"),
    ],
)
def test_what_is_no_table_is_refused_by_name_on_one_line(data, message):
    with pytest.raises(UserError, match=message) as caught:
        read_table(data, "t.csv")
    assert "t.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_names_of_columns_are_one_line():
    assert list(read_table(b'"image\r\n id",d\x1bx\n1,2\n', "t.csv")) == ["image id", "dx"]


def test_numbers_with_a_decimal_comma_and_words():
    found = numbers(pd.Series(["0,25", ".5", "1e-3", "2,5E-1", "-1", "", "1,2,3", "much"], dtype=object))
    assert found.tolist() == [0.25, 0.5, 0.001, 0.25, -1, None, "1,2,3", "much"]
