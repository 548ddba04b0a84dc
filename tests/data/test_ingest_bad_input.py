"""Every kind of bad input: the culprit goes to quarantine.csv with its reason, the good rows stay."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tables import by_id

from ham_ray.data import archives
from ham_ray.data.ingest import ingest
from ham_ray.errors import UserError

pytestmark = pytest.mark.data
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def quarantine_of(uri) -> dict[str, tuple[str, str, str]]:
    """image_id to (file, reason, detail)."""
    rows = pd.read_csv(Path(uri, "quarantine.csv"), dtype=str, keep_default_na=False)
    assert rows.columns.tolist() == ["file", "image_id", "reason", "detail"]
    return {row.image_id: (row.file, row.reason, row.detail) for row in rows.itertuples()}


def left_out(archive, out, **options):
    """Ingest with a generous limit: what was left out; and the ids that stayed are in order and decodable."""
    report = ingest(archive, out, size=32, max_quarantined=0.5, **options)
    rows = by_id(report.uri)
    assert rows["image_id"].is_unique
    assert report.card["images"] == len(rows)
    found = quarantine_of(out)
    assert not set(found) & set(rows["image_id"])
    return found, rows


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "damage, reason, detail",
    [
        (lambda data: data[: len(data) // 2], "truncated", "truncated"),
        (lambda data: data[:20], "truncated", "the header breaks off; 20 bytes"),
        (lambda data: b"", "not an image", "0 bytes"),
        (lambda data: b"<html>404 Not Found</html>", "not an image", "HTML, 26 bytes"),
        (lambda data: png_header(9000, 8000), "too many pixels", "9000×8000 announced"),
        (lambda data: png_header(20_000, 20_000), "too many pixels", "400000000 pixels"),
        (lambda data: png_header(60, 45), "truncated", ""),
    ],
    ids=["cut in half", "cut in the header", "empty", "html", "large bomb", "huge bomb", "short png"],
)
@pytest.mark.parametrize("form", ["to_folder", "to_zip"])
def test_a_damaged_file(builder, tmp_path, form, damage, reason, detail):
    name = builder.name(5)
    builder.files[name] = damage(builder.files[name])
    found, rows = left_out(getattr(builder, form)(), tmp_path / "out")
    assert list(found) == ["ISIC_0000005"]
    assert found["ISIC_0000005"][:2] == (name, reason)
    assert detail in found["ISIC_0000005"][2]
    assert len(rows) == 41


def test_a_wrong_size_among_one_common(builder, draw, tmp_path):
    builder.files[builder.name(7)] = draw(7, (45, 60))
    found, rows = left_out(builder.to_zip(), tmp_path / "out")
    assert found == {"ISIC_0000007": (builder.name(7), "wrong size", "45×60, the others are 60×45")}
    assert len(rows) == 41


def test_mixed_sizes_are_accepted(builder, draw, tmp_path):
    for number in range(0, 42, 2):
        builder.files[builder.name(number)] = draw(number, (80, 60))
    found, rows = left_out(builder.to_zip(), tmp_path / "out")
    assert found == {}
    assert rows["width"].value_counts().to_dict() == {60: 21, 80: 21}


@pytest.mark.parametrize("form", ["to_folder", "to_zip"])
def test_copies_of_an_image_that_differ(builder, draw, tmp_path, form):
    same, other = builder.name(4).lower().replace("isic", "ISIC"), builder.name(9).lower().replace("isic", "ISIC")
    builder.files |= {same: builder.files[builder.name(4)], other: draw(500)}
    archive = getattr(builder, form)()
    found, rows = left_out(archive, tmp_path / "out")
    assert list(found) == ["ISIC_0000009"] and found["ISIC_0000009"][1] == "conflicting copies"
    files = pd.read_csv(tmp_path / "out" / "quarantine.csv")["file"].tolist()
    assert files == sorted([builder.name(9), other])
    assert len(rows) == 41


def test_metadata_and_images_without_each_other(builder, draw, tmp_path):
    del builder.files[builder.name(2)]
    builder.files["HAM10000_images_part_1/ISIC_7777777.jpg"] = draw(70)
    found, rows = left_out(builder.to_zip(), tmp_path / "out")
    assert found["ISIC_0000002"] == ("HAM10000_metadata.csv", "no image", "a row without a file")
    assert found["ISIC_7777777"] == ("HAM10000_images_part_1/ISIC_7777777.jpg", "no metadata", "a file without a row")
    assert len(found) == 2 and len(rows) == 41


@pytest.mark.parametrize(
    "change, reason, detail",
    [
        ({"dx": "mell"}, "unknown diagnosis", "'mell'; nearest is mel"),
        ({"dx": "!"}, "unknown diagnosis", "'!'; known: akiec, bcc, bkl, df, mel, nv, vasc"),
        ({"dx": ""}, "no dx", "its cell is empty or means missing"),
        ({"lesion_id": " "}, "no lesion_id", "its cell is empty or means missing"),
    ],
)
def test_a_bad_metadata_row(builder, tmp_path, change, reason, detail):
    builder.rows[10] |= change
    found, rows = left_out(builder.to_folder(), tmp_path / "out")
    assert found == {"ISIC_0000010": ("HAM10000_metadata.csv", reason, detail)}
    assert len(rows) == 41


def test_a_row_without_image_id_leaves_its_image_without_metadata(builder, tmp_path):
    builder.rows[10]["image_id"] = ""
    found, rows = left_out(builder.to_folder(), tmp_path / "out")
    assert found[""][1:] == ("no image_id", "its cell is empty or means missing")
    assert found["ISIC_0000010"][1] == "no metadata"
    assert len(rows) == 41


def test_rows_of_one_image_that_disagree(builder, tmp_path):
    builder.rows += [dict(builder.rows[3]), dict(builder.rows[4]) | {"dx": "nv"}]
    found, rows = left_out(builder.to_folder(), tmp_path / "out")
    assert found == {"ISIC_0000004": ("HAM10000_metadata.csv", "conflicting metadata", "its rows differ")}
    assert len(rows) == 41 and "ISIC_0000003" in set(rows["image_id"])


@pytest.mark.parametrize(
    "name", ["../ISIC_0000001.jpg", "/tmp/ISIC_0000001.jpg", "a/../../ISIC_0000001.jpg", "C:\\ISIC_0000001.jpg"]
)
def test_a_zip_with_names_that_lead_out(builder, draw, tmp_path, name):
    builder.files[name] = draw(77)
    found, rows = left_out(builder.to_zip(), tmp_path / "deep" / "out")
    assert found == {"": (name, "unsafe name", "leads out of the archive; not read")}
    assert len(rows) == 42 and rows["image_id"].nunique() == 42


def test_bytes_damaged_inside_a_zip(builder, tmp_path):
    archive = builder.to_zip()
    with zipfile.ZipFile(archive) as opened:
        images = [info for info in opened.infolist() if info.filename.endswith(".jpg")]
    stored = next(info for info in images if info.compress_type == zipfile.ZIP_STORED)
    deflated = next(info for info in images if info.compress_type == zipfile.ZIP_DEFLATED)
    data = bytearray(archive.read_bytes())
    for info in (stored, deflated):
        middle = info.header_offset + 60 + info.compress_size // 2
        data[middle : middle + 8] = b"\xff" * 8
    archive.write_bytes(data)
    found, rows = left_out(archive, tmp_path / "out")
    assert {finding[:2] for finding in found.values()} == {(i.filename, "unreadable") for i in (stored, deflated)}
    assert len(rows) == 40


def test_a_member_too_large_is_not_unpacked(builder, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 100_000)
    builder.files[builder.name(8)] = b"\0" * 200_000
    found, _ = left_out(builder.to_zip(), tmp_path / "out")
    assert found["ISIC_0000008"][1:] == ("unreadable", "200,000 bytes, more than any image has")


def test_equal_pixels_under_two_ids_are_kept_in_one_group(builder, tmp_path):
    image = Image.open(io.BytesIO(builder.files[builder.name(0)]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")  # other bytes, the same pixels
    first, second = builder.rows[0]["lesion_id"], builder.rows[40]["lesion_id"]
    builder.files[builder.name(40)] = buffer.getvalue()
    report = ingest(builder.to_folder(), tmp_path / "out", size=60)
    rows = by_id(report.uri).set_index("image_id")
    assert len(rows) == 42
    assert report.card["same_pixels"] == [["ISIC_0000000", "ISIC_0000040"]]
    assert rows.loc["ISIC_0000040", "group_id"] == rows.loc["ISIC_0000000", "group_id"] == min(first, second)
    assert rows.loc["ISIC_0000040", "fold"] == rows.loc["ISIC_0000000", "fold"]
    assert rows.loc["ISIC_0000040", "lesion_id"] == second
    assert report.card["groups"] == report.card["lesions"] - 1 == 27
    assert "same pixels, different dx: ISIC_0000000 akiec, ISIC_0000040 vasc" in report.notes


def test_lesions_that_share_pixels_are_in_one_fold(builder, tmp_path):
    """Ten pairs of lesions, the second of each with a picture of the first: dealt one by one, most pairs would part."""
    of_lesion = {row["lesion_id"]: number for number, row in enumerate(builder.rows)}
    pairs = list(zip(sorted(of_lesion)[:20:2], sorted(of_lesion)[1:20:2], strict=True))
    for first, second in pairs:
        builder.files[builder.name(of_lesion[second])] = builder.files[builder.name(of_lesion[first])]
    rows = by_id(ingest(builder.to_folder(), tmp_path / "out", size=32).uri)
    fold_of = rows.groupby("lesion_id")["fold"].agg(set)
    assert all(len(fold_of[first] | fold_of[second]) == 1 for first, second in pairs)
    assert rows["fold"].nunique() == 5 and (rows.groupby("group_id")["fold"].nunique() == 1).all()


def test_missing_values_are_null_and_counted(builder, tmp_path):
    builder.rows[0] |= {"age": "", "sex": "unknown", "localization": "unknown"}
    builder.rows[1] |= {"age": "0.0"}
    report = ingest(builder.to_folder(), tmp_path / "out", size=32)
    rows = by_id(report.uri)
    assert report.card["missing"] == {"age": 1, "sex": 1, "localization": 1}
    assert np.isnan(rows["age"][0]) and rows["age"][1] == 0 and rows["age"][2] == 45
    assert rows["sex"].isna().tolist() == [True] + [False] * 41


@pytest.mark.parametrize("missing", ["image_id", "lesion_id", "dx"])
def test_a_missing_required_column_is_named(builder, tmp_path, missing):
    columns = [name for name in ("lesion_id", "image_id", "dx", "age") if name != missing]
    with pytest.raises(UserError, match=f"no column {missing}; its columns: {', '.join(columns)}"):
        ingest(builder.to_folder(builder.kaggle(columns)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_optional_columns_are_null(builder, tmp_path):
    report = ingest(builder.to_folder(builder.kaggle(["lesion_id", "image_id", "dx"])), tmp_path / "out", size=32)
    assert report.card["missing"] == {"age": 42, "sex": 42, "localization": 42, "dx_type": 42}
    assert "HAM10000_metadata.csv has no column age, sex, localization, dx_type: left empty" in report.notes


def test_too_much_fallen_out_is_refused_and_can_be_looked_at(builder, tmp_path):
    for number in (1, 2):
        builder.files[builder.name(number)] = b"broken"
    archive, out = builder.to_zip(), tmp_path / "out"
    with pytest.raises(
        UserError, match=r"2 of 42 images quarantined \(2 not an image\), more than --max-quarantined 0\.01"
    ):
        ingest(archive, out, size=32)
    assert not out.exists()
    assert pd.read_csv(f"{out}.quarantine.csv")["image_id"].tolist() == ["ISIC_0000002", "ISIC_0000001"]
    assert ingest(archive, out, size=32, max_quarantined=2 / 42).card["images"] == 40


def test_nothing_left_is_refused_whatever_the_limit(builder, tmp_path):
    builder.files = dict.fromkeys(builder.files, b"broken")
    with pytest.raises(UserError, match=r"nothing usable in .*: 42 not an image"):
        ingest(builder.to_zip(), tmp_path / "out", max_quarantined=1)
    builder.rows = []
    with pytest.raises(UserError, match=r"nothing usable in .*: 42 no metadata"):
        ingest(builder.to_zip(), tmp_path / "out", max_quarantined=1)


def cut_zip(builder):
    path = builder.to_zip()
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def nested_zip(builder):
    return builder.to_zip({"HAM10000_images_part_1.zip": builder.to_zip().read_bytes()}, "outer.zip")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda b: b.folder / "nowhere", "no such file or folder: .*nowhere"),
        (lambda b: b.to_zip({}), "is empty: no image in it"),
        (lambda b: b.to_folder({"a.txt": b"no zip"}) / "a.txt", "a.txt is not a whole zip file"),
        (cut_zip, "is not a whole zip file"),
        (nested_zip, "unpack the outer zip first: it holds HAM10000_images_part_1.zip"),
        (
            lambda b: b.to_folder({"a/readme.txt": b""}),
            r"no metadata in .*; found a/readme.txt \(cannot read a/readme.txt: it is empty\)$",
        ),
        (lambda b: b.to_folder({"HAM10000_metadata.csv": bytes(range(256))}), "it is no text in UTF-8"),
        (lambda b: b.to_folder({"HAM10000_metadata.csv": b""}), "cannot read HAM10000_metadata.csv: it is empty"),
        (lambda b: "s3://bucket/ham10000.zip", "must be a local or shared path, got 's3://bucket/ham10000.zip'"),
    ],
    ids=["missing", "empty zip", "no zip", "cut zip", "zip in zip", "no metadata", "binary", "empty file", "remote"],
)
def test_an_unusable_archive_is_one_clear_line(builder, tmp_path, make, message):
    with pytest.raises(UserError, match=message) as caught:
        ingest(make(builder), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 5}, "size 5 is outside 16–1024"),
        ({"geometry": "sqash"}, "unknown geometry 'sqash'; did you mean squash"),
        ({"max_quarantined": 3}, "a fraction from 0 to 1, got 3"),
    ],
)
def test_unusable_options(builder, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        ingest(builder.to_zip(), tmp_path / "out", **options)


def test_an_occupied_place_is_left_alone(builder, tmp_path):
    archive = builder.to_zip()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match="exists and is no IMAGES table"):
            ingest(archive, place)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_finished_table_is_reused_only_for_the_same_archive_and_options(builder, draw, tmp_path):
    archive, out = builder.to_zip(), tmp_path / "out"
    first = ingest(archive, out, size=32)
    again = ingest(archive, out, size=32)
    assert not first.reused and again.reused and again.card == first.card
    for options in ({"size": 48}, {"size": 32, "geometry": "squash"}):
        with pytest.raises(UserError, match=r"already holds another table \(archive.zip, 32 px, crop"):
            ingest(archive, out, **options)
    builder.files[builder.name(3)] = draw(1000)
    with pytest.raises(UserError, match=r"archive.zip was changed or copied since .*--data .*out; to make it anew"):
        ingest(builder.to_zip(), out, size=32)


def run_job(*arguments, **options):
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "ingest.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        **options,
    )


def test_the_job_ends_with_a_summary_or_one_line_and_2(builder, tmp_path):
    builder.files[builder.name(1)] = b"broken"
    archive = builder.to_zip()
    refused = run_job(archive, "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert (
        refused.stderr.startswith("error: 1 of 42 images quarantined (1 not an image)")
        and refused.stderr.count("\n") == 1
    )
    accepted = run_job(archive, "--out", tmp_path / "out", "--max-quarantined", 0.1, "--size", 32)
    assert accepted.returncode == 0, accepted.stderr
    assert "41 images, 28 lesions, 28 groups" in accepted.stdout
    assert "quarantined: 1 not an image" in accepted.stdout
    assert "CC BY-NC 4.0" in accepted.stdout


def test_an_unwritable_place_is_one_line(builder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/out: Not a directory"):
        ingest(builder.to_zip(), tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, who may not read the folder")
def test_a_folder_one_may_not_read(builder, tmp_path):
    archive = builder.to_folder()
    archive.chmod(0o700)
    code = (
        "import os, sys\n"
        "from ham_ray.data.archives import list_files\n"
        "os.setegid(65534); os.seteuid(65534)\n"
        "try: list_files(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    shared = Path("/tmp", f"ham_ray-test-{os.getpid()}")  # pytest's own folders are closed to others
    shutil.move(archive, shared)
    try:
        ran = subprocess.run([sys.executable, "-c", code, str(shared)], capture_output=True, text=True, env=ENVIRONMENT)
        assert ran.stdout.strip() == f"UserError cannot read {shared}: Permission denied", ran.stderr
    finally:
        shutil.rmtree(shared)


def test_one_class_alone_is_refused_before_the_long_work(builder, tmp_path):
    for row in builder.rows:
        row["dx"] = "nv"
    message = (
        r"no training could work on .*archive: all 42 images are nv.*give it as it is to jobs/predict.py: --images"
    )
    with pytest.raises(UserError, match=message):
        ingest(builder.to_folder(), tmp_path / "out", on_progress=lambda done, total: pytest.fail("work was done"))


def test_a_class_in_few_folds_and_a_small_archive_are_said(builder, tmp_path):
    builder.rows = [row for row in builder.rows if row["dx"] != "vasc"]
    for row in builder.rows:
        row["dx"] = "nv" if row["dx"] == "df" else row["dx"]
    builder.rows[0]["dx"] = "df"
    report = ingest(builder.to_folder(), tmp_path / "out", size=32, max_quarantined=0.5)
    assert "no image is vasc: a model trained on this table will not predict them" in report.notes
    assert any(
        "classes that not all folds have: " in note and "(1 images of 1 lesions)" in note for note in report.notes
    )
    assert any("36 images are too few" in note for note in report.notes)


def test_four_images(builder, tmp_path):
    builder.rows = builder.rows[:4]
    notes = ingest(builder.to_folder(), tmp_path / "out", size=32, max_quarantined=1).notes
    assert any("4 images are too few for figures that one could believe: fold 0 has" in note for note in notes)
    builder.rows = builder.rows[1:3]
    builder.rows[1]["dx"] = "nv"
    with pytest.raises(UserError, match="2 images of 1 lesions: training, validation and test need one each"):
        ingest(builder.to_folder(name="two"), tmp_path / "two-out", size=32, max_quarantined=1)
