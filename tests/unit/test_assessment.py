"""What a reviewer asks of predictions, by hand: lesions, subgroups, McNemar, Holm, errors, and who may be reported."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES, CODES, LABELS, PROBABILITIES, RAW
from scipy.stats import binom

from ham_ray.errors import UserError
from ham_ray.evaluation import assessment, metrics
from ham_ray.evaluation.predictions import arrays, predictions

pytestmark = pytest.mark.unit


def table(truth: list[str], called: list[str], split: str = "test", sure: float = 0.88, **facts: list) -> pd.DataFrame:
    """PREDICTIONS that call these classes; each image a lesion of its own unless `group_id` says otherwise."""
    names = [f"{split}-{place}" for place in range(len(truth))]
    groups = facts.pop("group_id", names)
    rows = pd.DataFrame({"image_id": names, "lesion_id": groups, "group_id": groups, "fold": 0, **facts})
    rows["label"] = [LABELS[dx] for dx in truth]
    p = np.full((len(truth), 7), (1 - sure) / 6)
    p[np.arange(len(truth)), [LABELS[dx] for dx in called]] = sure
    return predictions(rows, split, p, CLASSES)


def test_only_images_that_no_model_knows_are_reported():
    known = [table(["nv"] * 3, ["nv"] * 3, split) for split in ("training", "validation")]
    both = pd.concat([*known, table(["mel"], ["nv"]), table(["nv"], ["nv"], "new")], ignore_index=True)
    assert assessment.reported(both)["image_id"].tolist() == ["test-0", "new-0"]
    unlabelled = both.assign(y_true=both["y_true"].astype("Int32").where(both["split"] != "test"))
    assert assessment.reported(unlabelled)["image_id"].tolist() == ["new-0"]
    with pytest.raises(UserError, match="nothing to report: .*3 training, 3 validation"):
        assessment.reported(pd.concat(known))


def test_a_lesion_has_the_mean_of_its_images_and_no_label_where_they_differ():
    frame = table(
        ["mel", "mel", "nv", "bkl", "nv"], ["mel", "nv", "nv", "nv", "nv"], group_id=["a", "a", "b", "b", "c"]
    )
    found = assessment.by_lesion(frame)
    assert found["group_id"].tolist() == ["a", "c"]
    assert found.loc[0, "p_mel"] == pytest.approx((0.88 + 0.02) / 2) and found.loc[0, "y_true"] == LABELS["mel"]


def test_subgroups_by_hand():
    truth = ["mel"] * 12 + ["nv"] * 12 + ["mel"] * 5 + ["nv"] * 15
    called = ["mel"] * 9 + ["nv"] * 3 + ["nv"] * 12 + ["mel"] * 5 + ["nv"] * 15
    sexes, ages = ["female"] * 24 + ["male"] * 20, [39.0] * 24 + [40.0] * 19 + [None]
    found = assessment.subgroups(table(truth, called, sex=sexes, age=ages, localization=["ear"] * 9 + [None] * 35))
    groups = {(group.fact, group.value): group for group in found}
    assert set(groups) == {
        *(("sex", "female"), ("sex", "male"), ("age", "under 40"), ("age", "40 to 59"), ("age", "not known")),
        *(("site", "ear"), ("site", "not known")),
    }  # nobody is older, and nothing says how a label was made
    ears = groups["site", "ear"]  # nine
    assert (ears.images, ears.accuracy, ears.focus_sensitivity) == (9, None, None)
    female, male = groups["sex", "female"], groups["sex", "male"]
    assert (female.images, female.focused) == (24, 12)
    assert female.accuracy is not None and female.accuracy.value == 21 / 24
    assert female.focus_sensitivity is not None and female.focus_sensitivity.value == 9 / 12
    assert female.balanced_accuracy is not None and female.balanced_accuracy.value == (9 / 12 + 1) / 2
    assert (male.focused, male.focus_sensitivity, male.focus_auc, male.balanced_accuracy) == (
        5,
        None,
        None,
        None,
    )
    assert groups["age", "40 to 59"].images == 19


def test_progress_counts_each_image_once_a_part():
    """Three figures of all 24 images, two facts that divide them, and 12 lesions."""
    frame = table(["mel", "nv"] * 12, ["mel", "nv"] * 12, group_id=[f"{i % 2}-{i // 4}" for i in range(24)])
    frame = frame.assign(sex=["female", "male", None] * 8, age=[39.0, 70.0] * 12)
    reports: list[tuple[int, int]] = []
    assessment.assess(frame, lambda done, total: reports.append((done, total)))
    assert reports[0] == (0, 5 * 24 + 12) and reports[-1] == (5 * 24 + 12, 5 * 24 + 12)
    assert [done for done, _ in reports] == sorted({done for done, _ in reports})
    assert len(reports) == 1 + 4 + 2 + 3  # ages under 40 and over 60; female, male and not known


def test_the_most_confident_errors_come_first():
    frame = table(["nv", "nv", "mel"], ["mel", "nv", "nv"])
    frame.loc[2, list(PROBABILITIES)] = [0.01, 0, 0, 0, 0.04, 0.95, 0]
    found = assessment.confident_errors(frame)
    assert found[["image_id", "dx", "called"]].values.tolist() == [["test-2", "mel", "nv"], ["test-0", "nv", "mel"]]
    assert found["p"].tolist() == pytest.approx([0.95, 0.88]) and found["p_true"].iloc[0] == pytest.approx(0.04)


def test_mcnemar_is_the_exact_test_of_the_images_only_one_gets_right():
    truth = ["nv"] * 12
    first = table(truth, ["nv"] * 10 + ["mel"] * 2)
    second = table(truth, ["mel"] * 8 + ["nv"] * 3 + ["mel"])
    found = assessment.mcnemar(first, second.sample(frac=1, random_state=0))
    assert (found.only_first, found.only_second) == (8, 1)
    assert found.p_value == pytest.approx(2 * binom.cdf(1, 9, 0.5))
    assert assessment.mcnemar(first, first).p_value == 1.0


def test_holm_by_hand():
    assert assessment.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert assessment.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and assessment.holm([]) == []


def test_thresholds_and_temperature_come_from_validation_alone():
    rng = np.random.default_rng(0)
    validation = table(
        [CODES[k] for k in rng.integers(0, 7, 200)], [CODES[k] for k in rng.integers(0, 7, 200)], "validation"
    )
    test = table(["mel"] * 20 + ["nv"] * 20, ["mel"] * 10 + ["nv"] * 30)
    both = pd.concat([validation, test], ignore_index=True)
    points, versions = assessment.operating_points(both), assessment.versions(both)
    turned = both.assign(y_true=np.where(both["split"] == "test", 0, both["y_true"]))
    assert len(versions) == 2 and versions.keys() == assessment.versions(turned).keys()  # the temperature is a name
    again = assessment.operating_points(turned)
    assert {name: point.threshold for name, point in again.items()} == {n: p.threshold for n, p in points.items()}
    assert again["specificity_90"].sensitivity is None
    assert assessment.operating_points(test) == {} and [*assessment.versions(test)] == ["as predicted"]


def test_without_validation_images_the_calls_of_the_models_own_thresholds_count():
    frame = table(["mel"] * 20 + ["nv"] * 20, ["mel"] * 10 + ["nv"] * 30)
    frame["mel_specificity_90"] = [True] * 15 + [False] * 23 + [True] * 2
    frame[RAW] = np.full((40, 7), 1 / 7)
    (point,) = assessment.operating_points(frame).values()
    assert point.threshold is None and point.sensitivity is not None and point.specificity is not None
    assert (point.sensitivity.value, point.specificity.value) == (15 / 20, 18 / 20)
    assert 0 < point.sensitivity.low < point.sensitivity.value < point.sensitivity.high < 1  # type: ignore[operator]
    before = assessment.assess(frame).reliability["before calibration"]
    assert before["nll"] == pytest.approx(np.log(7), abs=1e-6)


def test_the_summary_is_of_the_reported_images():
    both = pd.concat(
        [table(["nv"] * 9, ["mel"] * 9, "training"), table(["nv", "mel"], ["nv", "nv"])], ignore_index=True
    )
    found = assessment.assess(both).facts()
    assert found["n"] == 2 and found["accuracy"] == 0.5 == found["lesions"]["accuracy"]["value"]
    assert found["per_class"] == metrics.per_class(*arrays(assessment.reported(both)), CLASSES)
