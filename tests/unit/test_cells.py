"""What people write into metadata: words for missing, spellings of ids, ages with units."""

from __future__ import annotations

import pandas as pd
import pytest
from ham10000 import CLASSES

from ham_ray.data.cells import cleaned, match_ids, years

pytestmark = pytest.mark.unit


def column(name: str, *values: str) -> list[str]:
    return cleaned(pd.DataFrame({name: values}, dtype=object), CLASSES)[0][name].tolist()


WORDS = ["nan", "NaN", "NA", "N/A", "None", "null", "NULL", "-", "unknown", "?", "<NA>", "#N/A"]


@pytest.mark.parametrize("name", ["lesion_id", "image_id", "dx", "sex", "localization", "dx_type", "age"])
def test_words_for_missing_are_empty_in_every_column(name):
    assert column(name, *WORDS) == [""] * len(WORDS)


def test_zero_is_no_lesion_but_an_age_and_a_number_among_numbers():
    assert column("lesion_id", "0", "0.0", "-1", "HAM_1") == ["", "", "", "HAM_1"]
    assert column("lesion_id", "0", "1", "17") == ["0", "1", "17"]
    assert column("age", "0", "0.0") == ["0", "0.0"]


def test_ids_that_went_through_floats_are_whole_numbers_again():
    assert column("lesion_id", "12.0", "7.0", "nan") == ["12", "7", ""]
    assert column("lesion_id", "12.0", "HAM_7") == ["12.0", "HAM_7"]


def test_lesions_that_differ_in_case_alone_are_one():
    table, notes = cleaned(pd.DataFrame({"lesion_id": ["HAM_0001", "ham_0001", "HAM_0002"]}, dtype=object), CLASSES)
    assert table["lesion_id"].tolist() == ["HAM_0001", "HAM_0001", "HAM_0002"]
    assert notes == ["1 lesion ids differ from others in upper and lower case alone: read 'ham_0001' as 'HAM_0001', …"]


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("70", 70),
        ("70,0", 70),
        ("70.5", 70.5),
        ("70 years", 70),
        ("70 Years old", 70),
        ("70y", 70),
        ("70 yrs.", 70),
        ("6 months", 0.5),
        ("0", 0),
        ("120", 120),
        ("7e1", 70),
        ("121", None),
        ("-1", None),
        ("inf", None),
        ("1e400", None),
        ("old", None),
        ("70m", None),
        ("60-70", None),
        ("", None),
    ],
)
def test_ages(text, age):
    assert years(text) == age


def test_ages_that_are_none_are_empty_and_said_with_their_counts():
    table, notes = cleaned(pd.DataFrame({"age": ["45.0", "-1", "-1", "inf", "70,0", "nan", ""]}, dtype=object), CLASSES)
    assert table["age"].tolist() == ["45.0", "", "", "", "70.0", "", ""]
    assert notes == ["3 ages are none from 0 to 120 years, left empty: '-1' (2), 'inf' (1)"]


def test_sexes_have_one_word_each():
    assert column("sex", "M", "male", "f", "Female", "nan") == ["male", "male", "female", "female", ""]


def test_other_names_of_diagnoses_are_said():
    table, notes = cleaned(pd.DataFrame({"dx": ["NV", "Melanoma", "Melanoma", "wart"]}, dtype=object), CLASSES)
    assert table["dx"].tolist() == ["nv", "mel", "mel", "wart"]
    assert notes == ["diagnoses read: 'Melanoma' as mel (2)"]


def test_image_ids_are_matched_where_only_one_fits():
    ids = pd.Series(["ISIC_1.jpg", "isic_2", "ISIC_3", "ISIC_4.PNG", "isic_4", "5.0"])
    found, notes = match_ids(ids, ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4", "5", "ISIC_9"])
    assert found.tolist() == ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4.PNG", "isic_4", "5"]  # two want ISIC_4
    assert notes == ["3 image ids differ in case or suffix alone: read '5.0' as '5', …"]
    assert match_ids(ids[:1], ["ISIC_1", "isic_1"])[0].tolist() == ["ISIC_1.jpg"]  # two fit
    assert match_ids(pd.Series(["Mu\u0308ller"]), ["Müller"])[0].tolist() == ["Müller"]  # as macOS names files
    assert match_ids(ids[2:3], ["ISIC_3", "isic_3"])[1] == []
