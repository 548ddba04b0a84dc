"""Truth and predictions as people bring them: what fits is used, what does not is named with its count."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES, CODES, PROBABILITIES

from ham_ray.data.truth import read_truth
from ham_ray.errors import UserError
from ham_ray.evaluation import isic, predictions
from ham_ray.workflows.steps import evaluating

pytestmark = pytest.mark.unit
NAMES = [
    "Bowen's disease",
    "BCC",
    "benign_keratosis-like_lesions",
    "DF",
    "melanoma",
    "melanocytic_Nevi",
    "Vascular lesion",
]


def made() -> pd.DataFrame:
    """Fourteen predicted images, two of each class, without labels."""
    ids = [f"ISIC_{place:07d}" for place in range(14)]
    rows = pd.DataFrame({"image_id": ids, "lesion_id": ids, "group_id": ids, "fold": -1, "label": 0})
    p = np.random.default_rng(0).dirichlet(np.ones(7), 14)
    return predictions.predictions(rows, "new", p, CLASSES).assign(y_true=pd.array([None] * 14, "Int32"))


@pytest.fixture
def table(tmp_path: Path) -> str:
    predictions.write(made(), str(tmp_path / "p.parquet"))
    return str(tmp_path / "p.parquet")


def labelled(tmp_path: Path, table: str, names: list[str], **columns) -> tuple[pd.DataFrame, list[str]]:
    """The predictions with labels from a CSV of these names, in turn; and the warnings."""
    rows = pd.DataFrame({"image_id": made()["image_id"], "dx": [names[place % 7] for place in range(14)], **columns})
    rows.to_csv(tmp_path / "truth.csv", index=False)
    warnings: list[str] = []
    return evaluating._labelled(
        evaluating._read(table, False, warnings),
        table,
        read_truth(str(tmp_path / "truth.csv"), CLASSES),
        CLASSES,
        warnings,
    ), warnings


def test_diagnoses_by_any_of_their_names_are_labels(tmp_path: Path, table: str):
    frame, warnings = labelled(tmp_path, table, NAMES)
    assert frame["y_true"].tolist() == [place % 7 for place in range(14)] and warnings == []


def test_what_is_none_of_the_seven_is_listed_with_counts_and_the_nearest(tmp_path: Path, table: str, capsys):
    frame, warnings = labelled(tmp_path, table, ["wart", *NAMES[1:4], "melanomma", *NAMES[5:]])
    assert frame["y_true"].isna().tolist() == [place % 7 in (0, 4) for place in range(14)]
    assert warnings == [
        "--truth: diagnoses that are none of the 7 classes, their images are left out: 'wart' (2), 'melanomma' (2, "
        "nearest is melanoma (mel))"
    ]
    assert "4 of 14 images have no true label and are left out" in capsys.readouterr().out


def test_truth_that_knows_the_images_but_no_diagnosis_says_so(tmp_path: Path, table: str):
    with pytest.raises(UserError, match=r"--truth has none of the 7 classes for the images of .*: 'benign' \(14\)"):
        labelled(tmp_path, table, ["benign"] * 7)


def test_truth_of_other_images_names_both(tmp_path: Path, table: str):
    with pytest.raises(
        UserError, match=r"knows none of the 14 images of .*, such as ISIC_0000000, .*; it has a0, a1, a2"
    ):
        labelled(tmp_path, table, NAMES, image_id=[f"a{place}" for place in range(14)])


def test_ids_with_a_suffix_or_in_another_case_are_matched_and_said(tmp_path: Path, table: str, capsys):
    ids = [f"isic_{place:07d}.JPG" for place in range(14)]
    frame, _ = labelled(tmp_path, table, NAMES, image_id=ids)
    assert frame["y_true"].tolist() == [place % 7 for place in range(14)]
    assert (
        "14 image ids differ in case or suffix alone: read 'ISIC_0000000' as 'isic_0000000.JPG'"
        in capsys.readouterr().out
    )


def test_words_for_missing_leave_images_unlabelled(tmp_path: Path, table: str):
    frame, warnings = labelled(tmp_path, table, ["NA", *NAMES[1:]], lesion_id="none", age="-1", sex="NaN")
    assert frame["y_true"].isna().sum() == 2 and warnings == []
    assert frame["age"].isna().all() and frame["sex"].isna().all()
    assert frame["group_id"].tolist() == made()["image_id"].tolist()  # no lesion "none"


def test_rows_that_contradict_are_counted(tmp_path: Path):
    (tmp_path / "t.csv").write_text("image_id;dx\na;nv\na;mel\nb;nv\nb;nv\nNA;nv\n")
    truth = read_truth(str(tmp_path / "t.csv"), CLASSES)
    assert truth.rows["label"].to_dict() == {"b": 5} and truth.notes == [
        "1 images have rows that differ and are left out"
    ]


def test_one_hot_truth_of_isic_2019_has_two_classes_more(tmp_path: Path):
    (tmp_path / "t.csv").write_text(
        "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\na,1.0,0,0,0,0,0,0,0,0\nb,0,0,0,1,0,0,0,0,0\nc,0,0,0,0,0,0,0,1,0\n"
        "d,0,0,0,0,0,0,0,0,1\n"
    )
    truth = read_truth(str(tmp_path / "t.csv"), CLASSES)
    assert truth.rows["label"].fillna(-1).tolist() == [4, 0, -1, -1] and truth.unknown.to_dict() == {"c": "scc"}


def test_flags_beside_a_diagnosis_are_no_classes(tmp_path: Path):
    (tmp_path / "t.csv").write_text("image,dx,biopsy,hairy\na,nv,1,0\nb,mel,0,1\n")
    assert read_truth(str(tmp_path / "t.csv"), CLASSES).rows["label"].tolist() == [5, 4]


def test_a_workbook_as_truth_is_named(tmp_path: Path):
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04 [Content_Types].xml")
    with pytest.raises(UserError, match="t.xlsx: it is an Excel or OpenDocument workbook; save it as CSV"):
        read_truth(str(tmp_path / "t.xlsx"), CLASSES)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [";", "\t"])
def test_predictions_saved_by_a_german_spreadsheet(tmp_path: Path, separator: str, encoding: str):
    frame = made().assign(y_true=range(14), age=45.5).assign(y_true=lambda frame: frame["y_true"] % 7)
    text = frame.to_csv(index=False, sep=separator, decimal=",") + separator * 5 + "\n"
    (tmp_path / "p.csv").write_bytes(text.encode(encoding))
    found = evaluating._read(str(tmp_path / "p.csv"), False, [])
    assert np.allclose(found[list(PROBABILITIES)].astype(float), frame[list(PROBABILITIES)], atol=1e-6)
    assert found["y_true"].tolist() == frame["y_true"].tolist() and set(found["age"]) == {45.5}


def test_a_challenge_table_saved_by_a_german_spreadsheet(tmp_path: Path):
    plain = pd.read_csv(io.BytesIO(isic.to_csv(made())))
    plain.to_csv(tmp_path / "i.csv", index=False, sep=";", decimal=",")
    found = evaluating._read(str(tmp_path / "i.csv"), False, [])
    assert np.allclose(found[list(PROBABILITIES)].astype(float), made()[list(PROBABILITIES)], atol=1e-6)
    assert list(CODES) == [name.removeprefix("p_") for name in PROBABILITIES]


def test_a_ragged_row_and_a_repeated_column_of_predictions_are_named(tmp_path: Path):
    lines = made().to_csv(index=False).splitlines()
    (tmp_path / "p.csv").write_text("\n".join([*lines[:3], lines[3] + ",1", *lines[4:]]))
    with pytest.raises(UserError, match=r"p\.csv: line 4 has \d+ fields, the header has \d+"):
        evaluating._read(str(tmp_path / "p.csv"), False, [])
    (tmp_path / "p.csv").write_text(
        "\n".join(f"{line},{word}" for line, word in zip(lines, ["p_nv", *"0" * 14], strict=True))
    )
    with pytest.raises(UserError, match=r"columns \d+ and \d+ are both named p_nv; delete one"):
        evaluating._read(str(tmp_path / "p.csv"), False, [])
