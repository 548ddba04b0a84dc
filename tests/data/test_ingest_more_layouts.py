"""The ISIC archive's own export and Hugging Face's Parquet files give the same rows as Kaggle's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ham10000 import CLASSES
from tables import by_id

from ham_ray.data import huggingface
from ham_ray.data.gallery import open_gallery
from ham_ray.data.ingest import ingest
from ham_ray.data.layouts import open_archive
from ham_ray.data.truth import read_truth
from ham_ray.errors import UserError

pytestmark = pytest.mark.data
# What the archive has for each class: diagnosis_1, diagnosis_2, diagnosis_3.
ISIC = {
    "akiec": ("Indeterminate", "Indeterminate epidermal proliferations", "Solar or actinic keratosis"),
    "bcc": ("Malignant", "Malignant adnexal epithelial proliferations - Follicular", "Basal cell carcinoma"),
    "bkl": ("Benign", "Benign epidermal proliferations", "Pigmented benign keratosis"),
    "df": ("Benign", "Benign soft tissue proliferations - Fibro-histiocytic", "Dermatofibroma"),
    "mel": ("Malignant", "Malignant melanocytic proliferations (Melanoma)", "Melanoma, NOS"),
    "nv": ("Benign", "Benign melanocytic proliferations", "Nevus"),
    "vasc": ("Benign", "Benign soft tissue proliferations - Vascular", ""),
}
HUGGING_FACE = {
    "akiec": "actinic_keratoses",
    "bcc": "basal_cell_carcinoma",
    "bkl": "benign_keratosis-like_lesions",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic_Nevi",
    "vasc": "vascular_lesions",
}
ISIC_COLUMNS = [
    "isic_id",
    "attribution",
    "copyright_license",
    "age_approx",
    "anatom_site_general",
    "anatom_site_special",
    "diagnosis_1",
    "diagnosis_2",
    "diagnosis_3",
    "diagnosis_4",
    "diagnosis_confirm_type",
    "image_type",
    "lesion_id",
    "melanocytic",
    "sex",
]


def contents(uri):
    rows = by_id(str(uri))
    return rows[["image_id", "lesion_id", "group_id", "dx", "fold", "age", "sex", "dx_type", "pixel_hash"]].to_dict(
        "records"
    )


@pytest.fixture
def expected(builder, tmp_path):
    ingest(builder.to_folder(name="expected_archive"), tmp_path / "expected", size=32)
    return contents(tmp_path / "expected")


def isic_rows(rows):
    return [
        {
            "isic_id": row["image_id"],
            "attribution": "ViDIR Group",
            "copyright_license": "CC-BY-NC",
            "age_approx": "45",
            "anatom_site_general": "posterior torso",
            "diagnosis_confirm_type": "histopathology",
            "image_type": "dermoscopic",
            "lesion_id": row["lesion_id"],
            "sex": "male",
            **dict(zip(("diagnosis_1", "diagnosis_2", "diagnosis_3"), ISIC[row["dx"]], strict=True)),
        }
        for row in rows
    ]


def isic_files(builder, delimited, rows):
    pictures = {f"{row['isic_id']}.jpg": builder.files[builder.name(n)] for n, row in enumerate(rows)}
    more = {"attribution.txt": b"ViDIR Group", "licenses/CC-BY-NC.txt": b"by-nc"}
    return {"metadata.csv": delimited(rows, ISIC_COLUMNS)} | more | pictures


@pytest.mark.parametrize("form", ["to_folder", "to_zip"])
def test_the_isic_archives_export(builder, delimited, tmp_path, expected, form):
    files = isic_files(builder, delimited, isic_rows(builder.rows))
    report = ingest(getattr(builder, form)(files), tmp_path / "out", size=32)
    assert report.card["source"]["layout"] == "isic-cli" and report.quarantined == {}
    assert contents(report.uri) == expected
    assert not any("official" in note or "dermoscopic" in note for note in report.notes)


def test_the_deepest_diagnosis_that_is_known_counts(builder, delimited, tmp_path):
    rows = isic_rows(builder.rows)
    invasive = {"diagnosis_3": "Melanoma Invasive", "diagnosis_4": "Melanoma Invasive, Superficial spreading"}
    rows[0] |= dict(zip(("diagnosis_1", "diagnosis_2"), ISIC["mel"], strict=False)) | invasive
    rows[1] |= {"diagnosis_2": "Benign - Other", "diagnosis_3": "Verruca"}
    rows[2] |= {"diagnosis_1": "", "diagnosis_2": "", "diagnosis_3": ""}
    rows[3] |= {"diagnosis_3": "Squamous cell carcinoma, NOS"}  # bkl's first two levels, none of which is a class
    rows[3] |= {"diagnosis_2": "Malignant epidermal proliferations"}
    report = ingest(
        builder.to_folder(isic_files(builder, delimited, rows)), tmp_path / "out", size=32, max_quarantined=0.1
    )
    assert by_id(report.uri)["dx"].iloc[0] == "mel"
    left_out = pd.read_csv(Path(report.uri, "quarantine.csv"))
    assert left_out["image_id"].tolist() == ["ISIC_0000001", "ISIC_0000002", "ISIC_0000003"]
    assert left_out["reason"].tolist() == ["unknown diagnosis", "no dx", "unknown diagnosis"]
    assert left_out["detail"][0].startswith("'verruca'; known: akiec, bcc")
    assert left_out["detail"][2] == "'squamous cell carcinoma, nos'; nearest is squamous cell carcinoma in situ (akiec)"


def test_bowens_disease_of_ham10000_official_images_and_overviews(builder, delimited, tmp_path):
    rows = isic_rows(builder.rows)
    for number, row in enumerate(rows):
        row["isic_id"] = f"ISIC_{34_300 + number:07d}"  # 21 of HAM10000's own, 21 of its validation set
    rows[0] |= {"diagnosis_2": "Malignant epidermal proliferations", "diagnosis_3": "Squamous cell carcinoma, NOS"}
    rows[5]["image_type"] = "clinical: overview"
    report = ingest(builder.to_folder(isic_files(builder, delimited, rows)), tmp_path / "out", size=32)
    assert by_id(report.uri)["dx"].iloc[0] == "akiec"
    assert any(
        note.startswith("21 images are of ISIC 2018's official validation and test sets") for note in report.notes
    )
    assert "1 images are not dermoscopic and are kept: clinical: overview (1)" in report.notes


def test_an_export_without_lesions_is_refused(builder, delimited, tmp_path):
    rows = isic_rows(builder.rows)
    files = isic_files(builder, delimited, rows)
    files["metadata.csv"] = delimited(rows, [name for name in ISIC_COLUMNS if name != "lesion_id"])
    with pytest.raises(UserError, match="metadata.csv has no column lesion_id"):
        ingest(builder.to_folder(files), tmp_path / "out")


def test_an_export_is_truth(builder, delimited, tmp_path):
    (tmp_path / "metadata.csv").write_bytes(delimited(isic_rows(builder.rows), ISIC_COLUMNS))
    truth = read_truth(str(tmp_path / "metadata.csv"), CLASSES)
    assert truth.rows["label"].tolist() == [
        ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"].index(r["dx"]) for r in builder.rows
    ]
    assert truth.unknown.empty and truth.rows.loc["ISIC_0000003", "lesion_id"] == builder.rows[3]["lesion_id"]


def packed(builder, folder: Path, files: dict[str, range], classes: bool = False, **columns) -> Path:
    """Parquet files as the library `datasets` writes them: each with the images of its range."""
    (folder / "data").mkdir(parents=True)
    for name, numbers in files.items():
        rows = [builder.rows[number] for number in numbers]
        table = pa.table(
            {
                "image": [
                    {"bytes": builder.files[builder.name(n)], "path": f"{builder.rows[n]['image_id']}.jpg"}
                    for n in numbers
                ],
                "image_id": [row["image_id"] for row in rows],
                "lesion_id": [row["lesion_id"] for row in rows],
                "dx": [HUGGING_FACE[row["dx"]] for row in rows],
                "dx_type": [row["dx_type"] for row in rows],
                "age": [float(row["age"]) for row in rows],
                "sex": [row["sex"] for row in rows],
                "localization": [row["localization"] for row in rows],
            }
        )
        for column, values in columns.items():
            table = (
                table.drop_columns(column)
                if values is None
                else table.set_column(
                    table.schema.get_field_index(column), column, pa.array([values[n] for n in numbers])
                )
            )
        if classes:
            names = sorted(set(HUGGING_FACE.values()))
            table = table.set_column(3, "dx", pa.array([names.index(text) for text in table["dx"].to_pylist()]))
            described = {"info": {"features": {"dx": {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
        pq.write_table(table, folder / "data" / name, row_group_size=5)
    return folder


FILES = {
    "train-00000-of-00002.parquet": range(0, 20),
    "train-00001-of-00002.parquet": range(20, 30),
    "test-00000-of-00001.parquet": range(26, 42),  # 26 to 29 are in both, as in the data set people use
}


@pytest.mark.parametrize("classes", [False, True], ids=["names", "numbered classes"])
def test_hugging_faces_parquet(builder, tmp_path, expected, classes):
    archive = packed(builder, tmp_path / "hub", FILES, classes)
    report = ingest(archive, tmp_path / "out", size=32)
    assert report.card["source"]["layout"] == "huggingface" and report.quarantined == {}
    assert contents(report.uri) == expected
    assert "the splits of the files (test, train) are not used: folds are assigned by lesion" in report.notes
    assert any("'melanocytic_Nevi' as nv" in note for note in report.notes)
    assert not (tmp_path / "out.partial").exists()


def test_one_parquet_file_by_itself(builder, tmp_path, expected):
    archive = packed(builder, tmp_path / "hub", {"all.parquet": range(42)}, image_id=None)
    report = ingest(archive / "data" / "all.parquet", tmp_path / "out", size=32)
    assert contents(report.uri) == expected  # ids are the names of the packed files


def test_a_broken_picture_and_a_missing_one_in_parquet(builder, tmp_path):
    builder.files[builder.name(7)] = b"no picture"
    pictures = [{"bytes": builder.files[builder.name(n)] if n != 9 else None, "path": None} for n in range(42)]
    archive = packed(builder, tmp_path / "hub", FILES, image=pictures)
    report = ingest(archive, tmp_path / "out", size=32, max_quarantined=0.1)
    listed = Path(report.uri, "quarantine.csv").read_text()
    assert "data/train-00000-of-00002.parquet, row 8" in listed and "0 bytes" in listed
    assert report.quarantined == {"not an image": 2} and report.card["images"] == 40


def test_unpacking_goes_on_file_by_file(builder, tmp_path, monkeypatch):
    archive = open_archive(packed(builder, tmp_path / "hub", FILES))
    reads = []
    plain = huggingface._pictures

    def watched(path):
        reads.append(path.name)
        if len(reads) == 2:
            raise OSError("the machine died")
        return plain(path)

    monkeypatch.setattr(huggingface, "_pictures", watched)
    with pytest.raises(OSError, match="died"):
        huggingface.unpacked(archive.images, archive.packed, tmp_path / "unpacked")
    files = huggingface.unpacked(archive.images, archive.packed, tmp_path / "unpacked")
    assert len(reads) == 4 and reads.count(archive.packed[0].name) == 1  # the whole one is not read again
    (member,) = files["ISIC_0000003"]
    assert Path(member.container, member.name).read_bytes() == builder.files[builder.name(3)]
    assert len(files["ISIC_0000026"]) == 2


def test_parquet_without_lesions_in_a_zip_or_torn(builder, tmp_path):
    archive = packed(builder, tmp_path / "hub", FILES, lesion_id=None)
    with pytest.raises(UserError, match=r"test-00000-of-00001.parquet has no column lesion_id"):
        ingest(archive, tmp_path / "out")
    whole = packed(builder, tmp_path / "whole", FILES) / "data" / "train-00000-of-00002.parquet"
    with pytest.raises(UserError, match="unpack the outer zip first: it holds a.parquet"):
        ingest(builder.to_zip({"a.parquet": whole.read_bytes()}), tmp_path / "out")
    with pytest.raises(UserError, match=r"found a.parquet \(cannot read a.parquet: "):
        ingest(builder.to_folder({"a.parquet": whole.read_bytes()[:-100]}, "torn"), tmp_path / "out")
    (whole.parent / "train-00002.parquet").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match="train-00002.parquet: no whole Parquet file .*; download it again"):
        ingest(tmp_path / "whole", tmp_path / "out")


def test_a_table_of_this_project_is_no_archive(builder, tmp_path):
    ingest(builder.to_folder(), tmp_path / "out", size=32)
    with pytest.raises(UserError, match="is a finished IMAGES table already: --data"):
        ingest(tmp_path / "out", tmp_path / "again", size=32)


def test_prediction_takes_the_export_with_its_labels_and_names_the_remedy_for_parquet(builder, delimited, tmp_path):
    export = builder.to_folder(isic_files(builder, delimited, isic_rows(builder.rows)), "export")
    rows = open_gallery(str(export), 32, "crop").rows.set_index("image_id")
    assert len(rows) == 42 and rows.loc["ISIC_0000001", ["dx", "lesion_id"]].tolist() == ["bcc", "HAM_0000001"]
    hub = packed(builder, tmp_path / "hub", FILES)
    with pytest.raises(UserError, match="pictures packed in Parquet; make a table of them first: jobs/ingest.py"):
        open_gallery(str(hub), 32, "crop")
