"""Metrics against tables worked out by hand, and against scikit-learn on random predictions."""

import json

import numpy as np
import pytest
from ham10000 import CLASSES, CODES, LABELS
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_score,
    roc_auc_score,
)

from ham_ray.errors import UserError
from ham_ray.evaluation import metrics

pytestmark = pytest.mark.unit


def labels(*codes):
    return np.array([LABELS[dx] for dx in codes])


def sure(*codes):
    """Probability 1 for these classes, one a row."""
    return np.eye(7)[labels(*codes)]


@pytest.fixture
def by_hand():
    """Four nv (three right, one called mel), two mel (one right, one called nv), one df called nv."""
    truth = labels("nv", "nv", "nv", "nv", "mel", "mel", "df")
    return truth, sure("nv", "nv", "nv", "mel", "mel", "nv", "nv")


@pytest.fixture
def random():
    rng = np.random.default_rng(7)
    p = rng.dirichlet(np.ones(7), 300)
    return rng.integers(0, 7, 300), p


def test_accuracy_counts_right_images(by_hand):
    assert metrics.accuracy(*by_hand) == pytest.approx(4 / 7)


def test_macro_f1_is_over_all_seven_classes(by_hand):
    # nv: 2·3 / (2·3 + 2 fp + 1 fn); mel: 2·1 / (2·1 + 1 + 1); the five others 0
    assert metrics.macro_f1(*by_hand) == pytest.approx((6 / 9 + 2 / 4) / 7)


def test_weighted_f1_weighs_by_images(by_hand):
    assert metrics.weighted_f1(*by_hand) == pytest.approx((4 * 6 / 9 + 2 * 2 / 4) / 7)


def test_balanced_accuracy_is_over_present_classes(by_hand):
    assert metrics.balanced_accuracy(*by_hand) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)


def test_per_class_values(by_hand):
    found = metrics.per_class(*by_hand, CLASSES)
    assert found["mel"]["n"] == 2
    assert found["mel"]["sensitivity"] == pytest.approx(1 / 2)
    assert found["mel"]["specificity"] == pytest.approx(4 / 5)
    assert found["nv"]["specificity"] == pytest.approx(1 / 3)
    assert found["df"]["sensitivity"] == 0
    assert found["mel"]["auc"] == pytest.approx((1 * 4.5 + 1 * 2) / 10)  # .5 above 4 of 5 and tied with 1, then ties


def test_confusion_has_true_classes_as_rows(by_hand):
    table = metrics.confusion(*by_hand)
    assert table[LABELS["df"], LABELS["nv"]] == 1
    assert table[LABELS["nv"], LABELS["df"]] == 0
    assert table.sum() == 7


def test_absent_classes_are_undefined_and_named(by_hand):
    found = metrics.evaluate(*by_hand, CLASSES)
    assert found["absent_classes"] == ["akiec", "bcc", "bkl", "vasc"]
    vasc = {"n": 0, "sensitivity": None, "specificity": 1, "ppv": None, "f1": None, "auc": None, "ap": None}
    assert found["per_class"]["vasc"] == vasc


def test_one_class_only_has_no_auc():
    found = metrics.evaluate(labels("nv", "nv"), sure("nv", "mel"), CLASSES)
    assert found["macro_auc"] is None
    assert found["malignant_auc"] is None
    assert found["melanoma_sensitivity"] is None
    assert found["accuracy"] == 1 / 2


def test_evaluation_is_plain_json(by_hand):
    assert json.loads(json.dumps(metrics.evaluate(*by_hand, CLASSES), allow_nan=False))["n"] == 7


def test_equals_sklearn(random):
    y_true, p = random
    called = p.argmax(axis=1)
    found = metrics.evaluate(y_true, p, CLASSES)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y_true, called))
    assert found["macro_f1"] == pytest.approx(f1_score(y_true, called, average="macro"))
    assert found["macro_auc"] == pytest.approx(roc_auc_score(y_true, p, multi_class="ovr", average="macro"))


def test_constant_nv_on_ham10000_counts():
    """The figures of the original study's frozen ResNet50 (.67/.12/.54), from HAM10000's class counts alone."""
    counts = {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}
    truth = np.repeat(labels(*counts), list(counts.values()))
    found = metrics.evaluate(truth, np.tile(sure("nv"), (len(truth), 1)), CLASSES)
    assert found["accuracy"] == pytest.approx(6705 / 10015)
    assert found["macro_f1"] == pytest.approx(0.1146, abs=5e-5)
    assert found["weighted_f1"] == pytest.approx(0.537, abs=5e-4)
    assert found["balanced_accuracy"] == pytest.approx(1 / 7)
    assert found["macro_auc"] == 0.5


def test_malignant_auc_sums_the_malignant_classes():
    p = np.zeros((3, 7))
    p[0, [LABELS["mel"], LABELS["bcc"], LABELS["nv"]]] = 0.3, 0.3, 0.4  # .6 malignant although nv is the most likely
    p[1, [LABELS["mel"], LABELS["nv"]]] = 0.5, 0.5
    p[2, [LABELS["akiec"], LABELS["nv"]]] = 0.1, 0.9
    assert metrics.malignant_auc(labels("akiec", "nv", "bkl"), p, CLASSES) == 1
    assert metrics.malignant_auc(labels("nv", "mel", "bkl"), p, CLASSES) == 1 / 2


def test_nll_by_hand():
    p = np.zeros((2, 7))
    p[0, [0, 1]] = 0.25, 0.75
    p[1, [0, 1]] = 0.5, 0.5
    assert metrics.nll(np.array([0, 1]), p) == pytest.approx((np.log(4) + np.log(2)) / 2)


def test_nll_of_float32_is_finite_and_does_not_warn(recwarn):
    p = np.full((3, 7), 1 / 7, np.float32)
    p[0] = sure("nv")
    assert np.isfinite(metrics.nll(labels("mel", "nv", "df"), p))
    assert not recwarn.list


def test_ece_by_hand():
    p = np.zeros((4, 7))
    p[:2, 0], p[:2, 1] = 0.8, 0.2  # one bin: confidence .8, accuracy 1/2
    p[2:, 0], p[2:, 1] = 0.9, 0.1  # another: confidence .9, accuracy 1
    assert metrics.ece(np.array([0, 1, 0, 0]), p) == pytest.approx(0.5 * 0.3 + 0.5 * 0.1)


def test_ece_bins_are_closed_above():
    p = np.zeros((2, 7))
    p[:, 0] = 0.6, 0.58  # both in (8/15, 9/15]: mean confidence .59, accuracy 1/2
    p[:, 1] = 1 - p[:, 0]
    assert metrics.ece(np.array([0, 1]), p) == pytest.approx(0.59 - 1 / 2)


def test_ece_of_certain_and_right_is_zero():
    assert metrics.ece(labels("nv", "mel"), sure("nv", "mel")) == 0


def test_tied_classes_go_to_the_first():
    p = np.zeros((1, 7))
    p[0, [2, 4]] = 0.5
    assert metrics.predicted(p).tolist() == [2]


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, r"not finite in rows \[1\]"), (np.inf, "not finite"), (-0.2, r"outside \[0, 1\]"), (0.9, "sum to 1")],
)
def test_impossible_probabilities_are_refused(value, message):
    p = sure("nv", "mel", "df")
    p[1, 0] = value
    with pytest.raises(UserError, match=message):
        metrics.evaluate(labels("nv", "mel", "df"), p, CLASSES)


def test_sum_to_one_has_a_tolerance():
    p = sure("nv", "mel")
    p[0, 0] = 9e-4
    assert not metrics.faults(p)
    p[0, 0] = 1.1e-3
    assert list(metrics.faults(p)) == ["do not sum to 1"]


@pytest.mark.parametrize(("truth", "p"), [([], np.zeros((0, 7))), ([0], np.ones((1, 6)) / 6), ([0, 1], np.eye(7)[:1])])
def test_shapes_that_do_not_fit_are_refused(truth, p):
    with pytest.raises(UserError, match="shape"):
        metrics.evaluate(np.array(truth, int), p, CLASSES)


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(UserError, match=r"0–6, got \[7\]"):
        metrics.evaluate(np.array([7]), sure("nv"), CLASSES)


def test_order_of_classes_is_that_of_diagnoses():
    assert list(metrics.per_class(labels("nv"), sure("nv"), CLASSES)) == list(CODES)


def test_brier_by_hand():
    p = np.array([[0.6, 0.4, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]])
    assert metrics.brier(np.array([0, 0]), p) == pytest.approx((0.4**2 + 0.4**2 + 1 + 1) / 2)


def test_class_ece_by_hand():
    # mel gets .8 twice and is right once: |.5 - .8|; nv gets .2 twice and is right once: |.5 - .2|; the others 0
    truth, p = labels("mel", "nv"), 0.8 * sure("mel", "mel") + 0.2 * sure("nv", "nv")
    found = metrics.class_ece(truth, p, CLASSES)
    assert found["mel"] == pytest.approx(0.3) and found["nv"] == pytest.approx(0.3)
    assert sum(found.values()) == pytest.approx(0.6)


def test_average_precision_and_ppv_agree_with_scikit_learn(random):
    truth, p = random
    found = metrics.per_class(truth, p, CLASSES)
    called = p.argmax(axis=1)
    for dx, label in LABELS.items():
        assert found[dx]["ap"] == pytest.approx(average_precision_score(truth == label, p[:, label]))
        assert found[dx]["ppv"] == pytest.approx(precision_score(truth == label, called == label))
