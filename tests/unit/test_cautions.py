"""Sentences that must stand beside figures: each looks at the predictions it is of."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from ham10000 import CODES, LABELS, PROBABILITIES

from ham_ray.data.datasets.ham10000 import contains
from ham_ray.report import cautions

pytestmark = pytest.mark.unit


def table(truth: list[str], called: list[str]) -> pd.DataFrame:
    ids = [f"i{place:05}" for place in range(len(truth))]
    frame = pd.DataFrame({"image_id": ids, "group_id": ids, "y_true": [LABELS[dx] for dx in truth]})
    frame[list(PROBABILITIES)] = np.eye(7, dtype=np.float32)[[LABELS[dx] for dx in called]]
    return frame.assign(lesion_id=ids, fold=0, split="test")


def test_more_than_85_percent_of_one_class_is_marked_unless_so_many_are_of_it():
    truth = ["nv"] * 60 + ["mel"] * 40
    assert cautions.one_class(table(truth, ["bcc"] * 86 + ["mel"] * 14)) == (
        "predicts 86 % of these images as bcc (basal cell carcinoma); 0 % are"
    )
    assert cautions.one_class(table(truth, ["bcc"] * 85 + ["mel"] * 15)) is None
    assert cautions.one_class(table(["nv"] * 95 + ["mel"] * 5, ["nv"] * 100)) is None
    assert cautions.one_class(table(truth[40:69], ["nv"] * 29)) is None  # few images are marked by their number


def test_a_trivial_baseline_must_be_beaten_beyond_chance_in_both_metrics():
    truth = [*CODES] * 20
    always, right = table(truth, ["nv"] * 140), table(truth, truth)
    assert cautions.not_better(right, {"always_nv": always}) is None
    same = cautions.not_better(always, {"always_nv": always})
    assert same is not None and "balanced accuracy +0.000" in same and "macro-F1 +0.000" in same
    one_more = table(truth, ["nv"] * 139 + truth[139:])  # one lesion more: a third of the resamples have it not
    assert "than always_nv: balanced accuracy" in str(cautions.not_better(one_more, {"always_nv": always}))
    text = cautions.not_better(always, {"always_nv": always, "thumbnails": right})
    assert "; than thumbnails: balanced accuracy -0.857 (" in str(text)


def test_without_floors_the_baseline_is_the_most_frequent_class():
    truth = ["nv"] * 70 + ["mel"] * 30
    said = cautions.cautions(table(truth, ["nv"] * 100), {})
    assert any(
        "not better, beyond chance, than predicting the most frequent class for all images" in text for text in said
    )
    assert not any("not better" in text for text in cautions.cautions(table(truth, truth), {}))


def test_absent_classes_are_named_with_what_it_does_to_the_metrics():
    text = cautions.absent(table(["nv", "mel", "bcc", "bkl", "vasc"], ["nv"] * 5))
    assert text is not None and "akiec (actinic keratosis / intraepithelial carcinoma), df (dermatofibroma)" in text
    assert "means of the other 5 classes" in text
    assert cautions.absent(table([*CODES], [*CODES])) is None


def test_the_original_study_stands_beside_ham10000_alone():
    assert contains(["ISIC_0024306", "ISIC_0034320"])
    assert not contains(["ISIC_0024306", "ISIC_0034321"]) and not contains(["pic_1"])
