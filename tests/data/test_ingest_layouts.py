"""The three layouts, each as a folder and a zip, give the same rows."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
from tables import by_id

from ham_ray.data import archives
from ham_ray.data.ingest import ingest
from ham_ray.data.layouts import open_archive
from ham_ray.errors import UserError

pytestmark = pytest.mark.data
HAM_COLUMNS = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
ISIC_ORDER = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


def contents(uri):
    """What must be equal however the archive was laid out."""
    rows = by_id(str(uri))
    return rows[["image_id", "lesion_id", "group_id", "dx", "label", "fold", "pixel_hash"]].to_dict("records")


@pytest.fixture
def expected(builder, tmp_path):
    ingest(builder.to_folder(name="expected_archive"), tmp_path / "expected", size=32)
    rows = contents(tmp_path / "expected")
    assert len(rows) == 42
    assert rows[1]["dx"] == "bcc" and rows[1]["lesion_id"] == "HAM_0000001" and rows[1]["label"] == 1
    return rows


def test_kaggle_zip_with_its_lower_case_copies(builder, tmp_path, expected):
    files = builder.kaggle() | {name.lower().replace("isic_", "ISIC_"): data for name, data in builder.files.items()}
    files |= {
        "hmnist_28_28_RGB.csv": b"pixel0000,label\n1,2\n",
        "__MACOSX/HAM10000_images_part_1/._ISIC_0000001.jpg": b"x",
    }
    report = ingest(builder.to_zip(files), tmp_path / "out", size=32)
    assert report.card["source"]["layout"] == "kaggle"
    assert report.quarantined == {}
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "name, separator", [("HAM10000_metadata", ","), ("HAM10000_metadata.tab", "\t"), ("HAM10000_metadata", "\t")]
)
def test_dataverse_folder_with_its_inner_zips(builder, delimited, tmp_path, expected, name, separator):
    for part in ("HAM10000_images_part_1", "HAM10000_images_part_2"):
        images = {f.partition("/")[2]: data for f, data in builder.files.items() if f.startswith(part)}
        builder.to_zip(images, f"dataverse/{part}.zip")
    builder.to_folder({name: delimited(builder.rows, HAM_COLUMNS, separator)}, "dataverse")
    builder.to_zip({"ISIC_0000001_segmentation.png": b"mask"}, "dataverse/HAM10000_segmentations_lesion_tschandl.zip")
    report = ingest(tmp_path / "dataverse", tmp_path / "out", size=32)
    assert report.card["source"]["layout"] == "dataverse"
    assert report.quarantined == {}
    assert contents(tmp_path / "out") == expected


def test_dataverse_test_set_is_its_own_partition(builder, delimited, draw, tmp_path):
    truth = [{"lesion_id": "HAMTEST_1", "image_id": "ISIC_0034524", "dx": "nv", "dataset": "external"}]
    files = {"HAM10000_metadata": delimited(builder.rows, HAM_COLUMNS)} | builder.files
    builder.to_zip({"ISIC2018_Task3_Test_Images/ISIC_0034524.jpg": draw(99)}, "archive/ISIC2018_Task3_Test_Images.zip")
    without = ingest(builder.to_folder(files), tmp_path / "without", size=32)
    assert without.card["images"] == 42 and any("left aside" in note for note in without.notes)

    builder.to_folder({"ISIC2018_Task3_Test_GroundTruth.csv": delimited(truth, HAM_COLUMNS)})
    report = ingest(tmp_path / "archive", tmp_path / "out", size=32)
    row = by_id(report.uri).iloc[-1]
    assert report.card["source"]["partitions"] == ["test", "training"]
    assert (row.image_id, row.partition, row.fold, row.lesion_id, row.dx) == (
        "ISIC_0034524",
        "test",
        -1,
        "HAMTEST_1",
        "nv",
    )


def isic_truth(delimited, pairs):
    rows = [{"image": i} | {name: f"{float(name.lower() == dx)}" for name in ISIC_ORDER} for i, dx in pairs]
    return delimited(rows, ["image", *ISIC_ORDER])


@pytest.fixture
def isic(builder, delimited, draw):
    """Training as in the other layouts, a validation and a test image, and the row whose image was never published."""
    grouping = [
        {"image": r["image_id"], "lesion_id": r["lesion_id"], "diagnosis_confirm_type": "histopathology"}
        for r in builder.rows
    ]
    pairs = [(r["image_id"], r["dx"]) for r in builder.rows]
    files = {f"ISIC2018_Task3_Training_Input/{n.rpartition('/')[2]}": d for n, d in builder.files.items()}
    return files | {
        "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv": isic_truth(delimited, pairs),
        "ISIC2018_Task3_Training_LesionGroupings.csv": delimited(
            grouping, ["image", "lesion_id", "diagnosis_confirm_type"]
        ),
        "ISIC2018_Task3_Validation_GroundTruth.csv": isic_truth(delimited, [("ISIC_0034321", "mel")]),
        "ISIC2018_Task3_Validation_Input/ISIC_0034321.jpg": draw(98),
        "ISIC2018_Task3_Test_GroundTruth.csv": isic_truth(delimited, [("ISIC_0034524", "df"), ("ISIC_0035068", "nv")]),
        "ISIC2018_Task3_Test_Input/ISIC_0034524.jpg": draw(99),
    }


@pytest.mark.parametrize("form", ["to_folder", "to_zip"])
def test_isic2018_with_all_partitions(builder, isic, tmp_path, expected, form):
    report = ingest(getattr(builder, form)(isic), tmp_path / "out", size=32, max_quarantined=0)
    rows = contents(report.uri)
    assert report.card["source"]["layout"] == "isic2018"
    assert rows[:42] == expected
    last = by_id(report.uri).iloc[42:]
    assert last["partition"].tolist() == ["validation", "test"]
    assert last["dx"].tolist() == ["mel", "df"]
    assert last["fold"].tolist() == [-1, -1]
    assert last["group_id"].tolist() == ["ISIC_0034321", "ISIC_0034524"]
    assert last["lesion_id"].isna().all()
    assert by_id(report.uri)["dx_type"].iloc[0] == "histo"
    assert report.quarantined == {"no image": 1}  # ISIC_0035068, though no image may fall out here


def test_isic2018_training_alone_and_in_inner_zips(builder, isic, tmp_path, expected):
    training = {n.rpartition("/")[2]: d for n, d in isic.items() if n.startswith("ISIC2018_Task3_Training_Input")}
    builder.to_zip(training, "isic/ISIC2018_Task3_Training_Input.zip")
    builder.to_folder({n: d for n, d in isic.items() if "Training" in n and n.endswith(".csv")}, "isic")
    report = ingest(tmp_path / "isic", tmp_path / "out", size=32)
    assert report.card["source"]["partitions"] == ["training"]
    assert contents(report.uri) == expected


def test_isic2018_without_lesions_is_refused(builder, isic, tmp_path):
    del isic["ISIC2018_Task3_Training_LesionGroupings.csv"]
    with pytest.raises(UserError, match=r"has no ISIC2018_Task3_Training_LesionGroupings\.csv"):
        ingest(builder.to_folder(isic), tmp_path / "out")


def test_the_layout_can_be_named(builder, tmp_path):
    archive = builder.to_zip()
    assert open_archive(archive).layout == "kaggle"
    assert open_archive(archive, "dataverse").layout == "dataverse"
    with pytest.raises(UserError, match="no ISIC2018_Task3_"):
        open_archive(archive, "isic2018")
    with pytest.raises(UserError, match="unknown layout 'kagle'; did you mean kaggle"):
        open_archive(archive, "kagle")


@pytest.mark.parametrize("form", ["to_folder", "to_zip"])
def test_members_are_read_in_other_processes(builder, form):
    archive = open_archive(getattr(builder, form)())
    members = [archive.images[f"ISIC_{i:07d}"][0] for i in range(4)]
    assert pickle.loads(pickle.dumps(members)) == members
    with ProcessPoolExecutor(1) as pool:
        assert list(pool.map(archives.read, members)) == [builder.files[builder.name(i)] for i in range(4)]


def test_the_signature_follows_the_content(builder, draw):
    first = open_archive(builder.to_folder()).signature
    assert open_archive(builder.to_folder(name="archive")).path.name == "archive"
    builder.files[builder.name(3)] = draw(1000)
    assert open_archive(builder.to_folder()).signature != first
