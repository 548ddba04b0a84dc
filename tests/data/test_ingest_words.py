"""Metadata as people fill it in: words for missing, spellings of a lesion, ages, tables from spreadsheets."""

from __future__ import annotations

import pytest
from tables import by_id

from ham_ray.data.ingest import ingest
from ham_ray.errors import UserError

pytestmark = pytest.mark.data
COLUMNS = ["image_id", "lesion_id", "dx", "age", "sex", "localization"]


def ingested(builder, tmp_path, **options):
    report = ingest(builder.to_folder(), tmp_path / "out", size=32, **options)
    return report, by_id(report.uri).set_index("image_id")


@pytest.mark.parametrize("word", ["nan", "NA", "None", "null", "-", "0", " N/A\u00a0"])
def test_a_lesion_of_a_word_for_missing_is_no_lesion(builder, tmp_path, word):
    for number in range(5):
        builder.rows[number]["lesion_id"] = word
    with pytest.raises(UserError, match=r"5 of 42 images quarantined \(5 no lesion_id\)"):
        ingest(builder.to_folder(), tmp_path / "out", size=32)
    report, rows = ingested(builder, tmp_path, max_quarantined=0.2)
    assert report.quarantined == {"no lesion_id": 5} and len(rows) == 37
    assert rows["lesion_id"].str.startswith("HAM_").all()


def test_the_other_columns_too(builder, tmp_path):
    builder.rows[0] |= {"age": "NaN", "sex": "nan", "localization": "N/A"}
    builder.rows[1] |= {"age": "70,0", "sex": "F"}
    builder.rows[2] |= {"age": "70 years"}
    builder.rows[3] |= {"age": "-1"}
    builder.rows[4] |= {"age": "inf"}
    report, rows = ingested(builder, tmp_path)
    assert report.card["missing"] == {"age": 3, "sex": 1, "localization": 1}
    assert rows["age"].iloc[[1, 2]].tolist() == [70, 70] and rows["sex"].iloc[1] == "female"
    assert "2 ages are none from 0 to 120 years, left empty: '-1' (1), 'inf' (1)" in report.notes


def test_a_lesion_spelled_in_two_ways_stays_in_one_fold(builder, tmp_path):
    plain = ingest(builder.to_folder(), tmp_path / "plain", size=32)
    builder.rows[2]["lesion_id"] = builder.rows[2]["lesion_id"].lower() + " "  # the second image of the second lesion
    report, rows = ingested(builder, tmp_path)
    assert rows["lesion_id"].iloc[1] == rows["lesion_id"].iloc[2] == "HAM_0000001"
    assert report.card["fingerprint"] == plain.card["fingerprint"]


def many_images_of_one_lesion(builder, draw, count):
    for number in range(100, 100 + count):
        builder.rows.append(dict(builder.rows[0]) | {"image_id": f"ISIC_{number:07d}", "lesion_id": "clinic"})
        builder.files[builder.name(number)] = draw(number)


def test_a_lesion_of_too_many_images_is_refused(builder, draw, tmp_path):
    many_images_of_one_lesion(builder, draw, 21)
    archive = builder.to_folder()
    message = r"lesion 'clinic' has 21 of 63 images \(ISIC_0000100, .*Empty its cells .* raise --max-lesion 0\.01"
    with pytest.raises(UserError, match=message):
        ingest(archive, tmp_path / "out", size=32)
    assert not (tmp_path / "out").exists()
    assert ingest(archive, tmp_path / "out", size=32, max_lesion=0.5).card["images"] == 63


def test_what_looks_like_no_one_lesion_is_said(builder, draw, tmp_path):
    many_images_of_one_lesion(builder, draw, 21)
    builder.rows[-1]["dx"] = "df"
    notes = ingest(builder.to_folder(), tmp_path / "out", size=32, max_lesion=0.5).notes
    assert "lesion 'clinic' has 21 images, more than 20: is it one lesion?" in notes
    assert "1 lesions have images of several diagnoses, are they one each? 'clinic' akiec, df" in notes


def test_twenty_images_of_a_lesion_are_accepted(builder, draw, tmp_path):
    many_images_of_one_lesion(builder, draw, 20)
    assert ingest(builder.to_folder(), tmp_path / "out", size=32).card["images"] == 62


def test_images_that_are_all_one_picture_are_refused(builder, draw, tmp_path):
    """A placeholder such as "image not available" would merge their lesions into one group."""
    for number in range(21):
        builder.files[builder.name(number)] = draw(999)
    with pytest.raises(UserError, match=r"lesion 'HAM_0000000' has \d+ of 42 images .*they share their pixels"):
        ingest(builder.to_folder(), tmp_path / "out", size=32)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8-sig"])
@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_metadata_saved_by_a_spreadsheet(builder, delimited, tmp_path, separator, encoding):
    plain = ingest(builder.to_folder(), tmp_path / "plain", size=32)
    builder.rows[0]["localization"] = "Gesäß"
    text = delimited(builder.rows, COLUMNS, separator).decode() + 3 * (separator * 5 + "\n")
    archive = builder.to_folder({"HAM10000_metadata.csv": text.encode(encoding)} | builder.files, name="spreadsheet")
    report = ingest(archive, tmp_path / "out", size=32)
    assert report.card["fingerprint"] == plain.card["fingerprint"]
    assert by_id(report.uri)["localization"].iloc[0] == "gesäß"


def test_a_workbook_is_named(builder, tmp_path):
    workbook = builder.to_zip({"[Content_Types].xml": b"", "xl/workbook.xml": b""}, "book.xlsx").read_bytes()
    with pytest.raises(
        UserError, match="HAM10000_metadata.csv: it is an Excel or OpenDocument workbook; save it as CSV"
    ):
        ingest(builder.to_folder({"HAM10000_metadata.csv": workbook} | builder.files), tmp_path / "out")


def test_a_row_that_does_not_fit_is_named_by_its_line(builder, delimited, tmp_path):
    lines = delimited(builder.rows, COLUMNS).decode().splitlines()
    lines[6] += ",left,and,right"
    archive = builder.to_folder({"HAM10000_metadata.csv": "\n".join(lines).encode()} | builder.files)
    with pytest.raises(UserError, match="HAM10000_metadata.csv: line 7 has 9 fields, the header has 6"):
        ingest(archive, tmp_path / "out")


def test_names_of_diagnoses_are_read_and_others_are_listed(builder, tmp_path):
    plain = ingest(builder.to_folder(), tmp_path / "plain", size=32, max_quarantined=0.1)
    names = {
        "akiec": "Bowen's disease",
        "bcc": "BCC",
        "bkl": "benign_keratosis-like_lesions",
        "df": "Dermatofibroma",
        "mel": "melanoma",
        "nv": "melanocytic_Nevi",
        "vasc": "vascular lesion",
    }
    for row in builder.rows:
        row["dx"] = names[row["dx"]]
    report, _ = ingested(builder, tmp_path)
    assert report.card["fingerprint"] == plain.card["fingerprint"]
    assert any("'melanoma' as mel (6)" in note for note in report.notes)


def test_diagnoses_that_are_none_are_named_with_counts_and_the_nearest(builder, tmp_path):
    for number in (3, 4):
        builder.rows[number]["dx"] = "Wart"
    builder.rows[5]["dx"] = "melanomma"
    names = r"'wart' \(2\), 'melanomma' \(1, nearest is melanoma \(mel\)\)"
    with pytest.raises(UserError, match=rf"3 of 42 images quarantined \(3 unknown diagnosis; unknown are {names}\)"):
        ingest(builder.to_folder(), tmp_path / "out", size=32)
    report, _ = ingested(builder, tmp_path, max_quarantined=0.2)
    said = "diagnoses that are none of the 7 classes, their images are left out: 'wart' (2), 'melanomma' (1, nearest"
    assert any(note.startswith(said) for note in report.notes)


def test_image_ids_with_a_suffix_or_in_another_case_are_matched(builder, tmp_path):
    plain = ingest(builder.to_folder(), tmp_path / "plain", size=32)
    for row in builder.rows[:10]:
        row["image_id"] += ".JPG"
    builder.rows[11]["image_id"] = builder.rows[11]["image_id"].lower()
    report, _ = ingested(builder, tmp_path)
    assert report.card["fingerprint"] == plain.card["fingerprint"]
    assert any(note.startswith("11 image ids differ in case or suffix alone") for note in report.notes)


def test_metadata_of_another_name_is_not_hidden_by_pictures(builder, delimited, tmp_path):
    pictures = {name.rpartition("/")[2]: data for name, data in builder.files.items()}
    rows = [{"file": row["image_id"], "colour": row["dx"]} for row in builder.rows]
    archive = builder.to_folder(pictures | {"z/my_metadata.csv": delimited(rows, ["file", "colour"])})
    message = r"no metadata in .*; found z/my_metadata.csv \(columns file, colour\), 42 pictures"
    with pytest.raises(UserError, match=message):
        ingest(archive, tmp_path / "out")


def test_one_folder_of_pictures_is_named(builder, tmp_path):
    pictures = {f"benign/{n}.jpg": d for n, d in enumerate(builder.files.values())}
    with pytest.raises(UserError, match=r"no metadata in .*; found benign/, 42 pictures"):
        ingest(builder.to_folder(pictures), tmp_path / "out")
