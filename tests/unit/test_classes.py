"""Names of the seven diagnoses as archives and people write them."""

from __future__ import annotations

import pytest
from ham10000 import CLASSES

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("dx", "names"),
    [
        ("akiec", ["akiec", "AKIEC", "AK", "Actinic keratosis", "actinic_keratoses", "Solar or actinic keratosis"]),
        ("akiec", ["Bowen's disease", "Bowen’s disease", "Actinic keratoses and intraepithelial carcinomae"]),
        ("bcc", ["BCC", "Basal cell carcinoma", "basal_cell_carcinoma"]),
        ("bkl", ["BKL", "benign_keratosis-like_lesions", "Pigmented benign keratosis", "Seborrheic keratosis"]),
        ("bkl", ["solar lentigo", "Lichen planus-like keratosis", "Benign keratosis"]),
        ("df", ["DF", "Dermatofibroma"]),
        ("mel", ["MEL", "melanoma", "Melanoma, NOS", "Melanoma Invasive", "melanoma in situ", " Melanoma "]),
        ("nv", ["NV", "nevus", "Melanocytic nevus", "melanocytic_Nevi", "naevus"]),
        ("vasc", ["VASC", "vascular_lesions", "Vascular lesion", "Benign soft tissue proliferations - Vascular"]),
    ],
)
def test_each_name_is_its_code(dx, names):
    assert {name: CLASSES.code_of(name) for name in names} == dict.fromkeys(names, dx)


@pytest.mark.parametrize("name", ["", "wart", "squamous cell carcinoma", "nevus sebaceus", "mel+nv", "Benign", "6"])
def test_another_diagnosis_is_none(name):
    assert CLASSES.code_of(name) is None


def test_the_nearest_name():
    found = [CLASSES.nearest(text) for text in ("mell", "melanomma", "Squamous cell carcinoma, NOS", "xyz")]
    assert found == ["mel", "melanoma (mel)", "squamous cell carcinoma in situ (akiec)", None]
