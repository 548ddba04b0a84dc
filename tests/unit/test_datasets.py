"""Data sets: what is known of classes by their codes, and what is asked of every data set that is registered."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ham_ray.data import datasets, terms
from ham_ray.data.classes import Classes
from ham_ray.data.dataset import Dataset
from ham_ray.data.layouts import open_archive
from ham_ray.data.sample import write_sample
from ham_ray.data.truth import read_truth
from ham_ray.errors import UserError
from ham_ray.evaluation import isic, metrics
from ham_ray.evaluation.predictions import classes_of, predictions

pytestmark = pytest.mark.unit
KNOWN = [dataset for dataset in datasets.DATASETS.values() if dataset.classes]
SOURCE = Path(datasets.__file__).parents[2]


@pytest.mark.parametrize("name", terms.DATASETS)
def test_the_line_of_a_data_set_names_its_layouts(name: str):
    assert datasets.DATASETS[name].name == name
    assert tuple(datasets.DATASETS[name].layouts) == terms.DATASETS[name]


@pytest.mark.parametrize("dataset", KNOWN, ids=lambda dataset: dataset.name)
def test_classes_are_known_by_their_codes_in_any_order(dataset: Dataset):
    assert dataset.classes is not None
    assert datasets.classes_of(dataset.classes.codes[::-1]) == dataset.classes
    assert datasets.of_classes(dataset.classes) is dataset
    assert {dataset.classes.code_of(one.name) for one in dataset.classes.diagnoses} == {*dataset.classes.codes}
    assert 0 < len(dataset.classes.malignant) < len(dataset.classes)


def test_classes_of_no_data_set_have_what_is_known_of_each():
    classes = datasets.classes_of(("wart", "melanoma", "nevus"))
    assert classes.codes == ("wart", "melanoma", "nevus") and classes.focus == "melanoma"
    assert classes.name("nevus") == "melanocytic nevus" and classes.titled("wart") == "wart"
    assert classes.malignant == []  # nobody says it of a wart
    assert datasets.classes_of(("melanoma", "nevus")).malignant == [0]
    assert datasets.classes_of(("cat", "dog")).focus is None


@pytest.mark.parametrize("dataset", datasets.DATASETS.values(), ids=lambda dataset: dataset.name)
def test_the_sample_is_recognised_and_read(dataset: Dataset, tmp_path: Path):
    archive = open_archive(write_sample(tmp_path / "s.zip", lesions=40, size=(24, 18), dataset=dataset))
    assert archive.dataset is dataset and archive.synthetic
    assert {*archive.metadata["dx"]} == {*dataset.sample.looks} and len(archive.metadata) == len(archive.images)


@pytest.mark.parametrize("dataset", [one for one in KNOWN if one.challenge], ids=lambda dataset: dataset.name)
def test_the_challenge_takes_its_columns_in_their_order(dataset: Dataset):
    assert dataset.classes is not None and dataset.challenge is not None
    count = len(dataset.classes)
    rows = pd.DataFrame({"image_id": [f"i{k}" for k in range(count)], "lesion_id": None, "fold": -1})
    rows["group_id"], rows["label"] = rows["image_id"], np.arange(count)
    table = predictions(rows, "new", np.eye(count) * 0.9 + 0.1 / count, dataset.classes)
    lines = isic.to_csv(table).decode().splitlines()
    assert lines[0].split(",") == ["image", *dataset.challenge.columns]
    for line, dx in zip(lines[1:], dataset.classes.codes, strict=True):
        values = dict(zip(dataset.challenge.columns, map(float, line.split(",")[1:]), strict=True))
        assert dataset.challenge.columns[max(values, key=lambda name: values[name])] == dx
        assert all(value == 0 for name, value in values.items() if dataset.challenge.columns[name] is None)
    assert isic.recognised({*lines[0].split(",")}) is dataset.challenge


def test_classes_without_a_challenge_have_no_table_of_it():
    with pytest.raises(UserError, match=r"of the classes of ISIC 2019 or ISIC 2018 Task 3; these are cat, dog"):
        isic.challenge_of(datasets.classes_of(("cat", "dog")))


def test_isic2019_with_images_of_no_class_and_without_lesions(tmp_path: Path):
    names = [*(dx.upper() for dx in ("mel", "nv", "bcc", "ak", "bkl", "df", "vasc", "scc")), "UNK"]
    rows = [("ISIC_1", "NV"), ("ISIC_2", "SCC"), ("ISIC_3", "UNK"), ("ISIC_4", "AK")]
    lines = [f"{image},{','.join('1.0' if name == dx else '0.0' for name in names)},1.0,0.0" for image, dx in rows]
    header = f"image,{','.join(names)},score_weight,validation_weight"
    (tmp_path / "ISIC_2019_Training_GroundTruth.csv").write_text("\n".join([header, *lines]) + "\n")
    (tmp_path / "ISIC_2019_Training_Metadata.csv").write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        "ISIC_1,55,posterior torso,BCN_1,female\nISIC_2,,,,\nISIC_3,30,,MSK_1,male\nISIC_4,70,head/neck,BCN_1,male\n"
    )
    (tmp_path / "ISIC_2019_Training_Input").mkdir()
    for image, _ in rows:
        (tmp_path / "ISIC_2019_Training_Input" / f"{image}.jpg").write_bytes(b"\xff\xd8\xff")
    archive = open_archive(tmp_path)
    assert archive.layout == "isic2019" and [*archive.images] == ["ISIC_1", "ISIC_2", "ISIC_4"]
    found = archive.metadata.set_index("image_id")
    assert found["dx"].to_dict() == {"ISIC_1": "nv", "ISIC_2": "scc", "ISIC_4": "ak"}
    assert found["lesion_id"].to_dict() == {"ISIC_1": "BCN_1", "ISIC_2": "", "ISIC_4": "BCN_1"}
    assert found.loc["ISIC_1", ["age", "localization"]].tolist() == ["55", "posterior torso"]
    assert any("1 images are of none of the classes" in note for note in archive.notes)


def pictures(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"\xff\xd8\xff")
    return folder


def test_a_folder_of_class_named_folders(tmp_path: Path):
    archive = open_archive(pictures(tmp_path, "Melanoma/1.jpg", "Melanoma/2.jpg", "Seborrheic Keratosis/1.jpg"))
    assert archive.layout == "folders" and archive.classes.codes == ("melanoma", "seborrheic_keratosis")
    assert archive.metadata.set_index("image_id")["dx"].to_dict() == {
        "Melanoma/1.jpg": "melanoma",
        "2": "melanoma",
        "Seborrheic Keratosis/1.jpg": "seborrheic_keratosis",
    }


def test_a_table_of_image_label_group_and_fold(tmp_path: Path):
    pictures(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    (tmp_path / "labels.csv").write_text("image,label,group,fold\na/1.jpg,Cat,p1,0\n2,dog,p1,0\n./b/1.jpg,cat,p2,4\n")
    archive = open_archive(tmp_path)
    rows = archive.metadata.set_index("image_id")
    assert archive.layout == "labels" and archive.classes == Classes(archive.classes.diagnoses)
    assert archive.classes.codes == ("cat", "dog")
    assert rows[["dx", "lesion_id", "fold"]].T.to_dict("list") == {
        "a/1.jpg": ["cat", "p1", "0"],
        "2": ["dog", "p1", "0"],
        "b/1.jpg": ["cat", "p2", "4"],
    }


def test_a_fold_that_is_none_is_refused(tmp_path: Path):
    pictures(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "labels.csv").write_text("image,label,fold\n1,cat,0\n2,dog,5\n")
    with pytest.raises(UserError, match=r"labels.csv: fold '5': 0 to 4 of each row, or no such column"):
        open_archive(tmp_path)


def test_labels_of_one_data_set_for_predictions_of_another(tmp_path: Path):
    """Names are what they share: ISIC 2019 has no class for HAM10000's Bowen's disease, and it says so."""
    (tmp_path / "t.csv").write_text("image_id,dx\na,melanoma\nb,akiec\nc,bcc\nd,Squamous cell carcinoma\n")
    truth = read_truth(str(tmp_path / "t.csv"), datasets.DATASETS["isic2019"].classes)
    assert truth.rows["label"].tolist() == [0, pd.NA, 2, 7] and truth.unknown.to_dict() == {"b": "akiec"}


def test_metrics_of_classes_without_focus_or_malignancy():
    classes = datasets.classes_of(("cat", "dog", "eel"))
    p = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.5, 0.3]])
    found = metrics.evaluate(np.array([0, 1, 2]), p, classes)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3) and found["confusion"][2] == [0, 1, 0]
    assert not {name for name in found if name.endswith(("_auc", "_sensitivity"))} - {"macro_auc"}
    frame = pd.DataFrame(p, columns=["p_cat", "p_dog", "p_eel"])
    assert classes_of(frame) == classes


NAMES = r"akiec|bcc|bkl|mel|nv|vasc|scc|n[ae]+v[iu]s?|nevi|melanoma|keratos[ie]s|carcinoma|dermatofibroma"


def test_no_file_outside_data_sets_and_templates_names_a_diagnosis():
    """Docstrings may, as examples: they are not counted."""
    own = {path for path in SOURCE.rglob("*.py") if "data/datasets" not in path.as_posix()}
    code = {path: re.sub(r'"""(?:.|\n)*?"""', "", path.read_text()) for path in own}
    naming = {
        f"{path.relative_to(SOURCE)}: {match[0]}"
        for path, text in code.items()
        for match in re.finditer(rf"\b(?:{NAMES})s?\b", text)
    }
    assert naming == set()


def test_a_zip_of_folders_is_no_archive_for_predict(tmp_path: Path):
    """Folders by date are no classes: only where labels are wanted does a folder's name count."""
    from ham_ray.data.gallery import open_gallery

    pictures(tmp_path / "in", "2023/1.jpg", "2024/2.jpg")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in ("2023/1.jpg", "2024/2.jpg"):
            archive.write(tmp_path / "in" / path, path)
    for place in ("in", "in.zip"):
        assert open_gallery(str(tmp_path / place), 32, "crop").rows["dx"].isna().all()
