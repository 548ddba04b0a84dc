"""Temperature and logit adjustment, by hand and by what they must recover; test images are never looked at."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES, MELANOMA

from ham_ray.evaluation import calibration as module
from ham_ray.evaluation import metrics, thresholds
from ham_ray.evaluation.calibration import Calibration, chosen, fit, mean_ba_macro_f1, temperature
from ham_ray.evaluation.predictions import arrays, predictions

pytestmark = pytest.mark.unit
RANDOM = np.random.default_rng(0)
UNIFORM = np.full(7, 1 / 7)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def drawn(count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from them: calibrated by construction."""
    p = softmax(2 * RANDOM.normal(size=(count, 7)))
    return np.array([RANDOM.choice(7, p=row) for row in p]), p


def table(truth: np.ndarray, p: np.ndarray, split: str = "validation") -> pd.DataFrame:
    names = [f"{split}-{place}" for place in range(len(truth))]
    rows = pd.DataFrame({"image_id": names, "lesion_id": names, "group_id": names, "fold": 1, "label": truth})
    return predictions(rows, split, p, CLASSES)


def test_it_is_the_formula():
    p, prior = np.array([[0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02]]), np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.1])
    expected = p**0.5 / prior**0.3
    np.testing.assert_allclose(Calibration(2.0, 0.3, tuple(prior)).apply(p), expected / expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(Calibration(1.0, 0.0, tuple(prior)).apply(p), p, rtol=1e-12)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_of_a_calibrated_model_made_sharper_is_its_sharpness(sharpness: float):
    truth, p = drawn()
    assert temperature(truth, softmax(sharpness * np.log(p))) == pytest.approx(sharpness, rel=0.08)


def test_the_temperature_does_not_change_who_is_called():
    _, p = drawn(200)
    called = Calibration(3.0, 0.0, tuple(UNIFORM)).apply(p).argmax(axis=1)
    np.testing.assert_array_equal(called, p.argmax(axis=1))


def test_tau_raises_the_balanced_accuracy_of_a_model_that_favours_the_common_class():
    prior = np.array([0.02, 0.02, 0.02, 0.02, 0.02, 0.88, 0.02])
    truth = RANDOM.choice(7, 3000, p=prior)
    signal = np.eye(7)[truth] * 2 + RANDOM.normal(size=(3000, 7))
    p = softmax(signal + np.log(prior))
    found = fit(table(truth, p), prior, metrics.balanced_accuracy)
    assert found.tau >= 0.6
    assert metrics.balanced_accuracy(truth, found.apply(p)) > metrics.balanced_accuracy(truth, p) + 0.1


def test_a_model_that_favours_rare_classes_is_held_back():
    prior = np.array([0.02, 0.02, 0.02, 0.02, 0.02, 0.88, 0.02])
    truth = RANDOM.choice(7, 3000, p=prior)
    p = softmax(np.eye(7)[truth] * 3 + RANDOM.normal(size=(3000, 7)) - 0.5 * np.log(prior))
    found = fit(table(truth, p), prior)
    assert found.tau <= -0.5
    assert metrics.macro_f1(truth, found.apply(p)) > metrics.macro_f1(truth, p) + 0.1


def test_the_compromise_is_the_mean_of_both():
    truth, p = np.arange(7), np.eye(7)[[0, 1, 2, 3, 4, 5, 5]]
    assert mean_ba_macro_f1(truth, p) == pytest.approx((6 / 7 + (5 + 2 / 3) / 7) / 2)


def test_without_gain_nothing_is_adjusted():
    truth = np.arange(700) % 7
    assert fit(table(truth, softmax(9.0 * np.eye(7)[truth])), UNIFORM, metrics.macro_f1).tau == 0.0


def test_test_images_do_not_matter():
    truth, p = drawn(500)
    alone = fit(table(truth, p), UNIFORM, metrics.macro_f1)
    beside = pd.concat([table(truth, p), table(truth, p[::-1], "test")], ignore_index=True)
    assert fit(beside, UNIFORM, metrics.macro_f1) == alone


def test_a_class_without_training_images_is_left_alone():
    prior = np.array([0.0, 0.1, 0.1, 0.1, 0.1, 0.5, 0.1])
    truth, p = drawn(300)
    assert np.isfinite(fit(table(truth, p), prior, metrics.macro_f1).apply(p)).all()


def test_both_splits_of_a_table_are_adjusted_and_stay_valid():
    truth, p = drawn(50)
    frame = pd.concat([table(truth, p), table(truth, p, "test")], ignore_index=True)
    adjusted = Calibration(2.0, 0.5, tuple(np.linspace(0.1, 0.2, 7))).applied(frame)
    assert list(adjusted.columns) == list(frame.columns)
    np.testing.assert_allclose(arrays(adjusted)[1].sum(axis=1), 1, atol=1e-5)
    assert not np.allclose(arrays(adjusted)[1], arrays(frame)[1])


def skewed(count: int, seed: int, lift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and class shares of a model whose logits lean by `lift` times the logs of the shares."""
    random, prior = np.random.default_rng(seed), np.array([0.02, 0.02, 0.02, 0.02, 0.02, 0.88, 0.02])
    truth = random.choice(7, count, p=prior)
    return truth, softmax(np.eye(7)[truth] * 2 + random.normal(size=(count, 7)) + lift * np.log(prior)), prior


def test_a_calibration_that_helps_images_it_was_not_fitted_on_is_used_and_says_so():
    truth, p, prior = skewed(2000, 0, 1.0)
    found, fitted = chosen(table(truth, p), prior), fit(table(truth, p), prior)
    assert found.helps and (found.temperature, found.tau) == (fitted.temperature, fitted.tau) == found.tried
    assert found.thresholds == fitted.thresholds
    assert found.without == mean_ba_macro_f1(truth, p) and found.crossed is not None and found.crossed > found.without
    assert found.verdict.startswith("calibrated on validation images: temperature ") and "cross-fitted" in found.verdict


def test_a_calibration_that_fits_noise_alone_is_not_used_and_says_so():
    """Of few images the best of 51 taus is better on these, and not on others: in-sample it always seems to help."""
    refused = 0
    for seed in range(6):
        truth, p, prior = skewed(60, seed, 0.35)
        found, fitted = chosen(table(truth, p), prior), fit(table(truth, p), prior)
        assert mean_ba_macro_f1(truth, fitted.apply(p)) >= mean_ba_macro_f1(truth, p) - 1e-12
        if found.helps:
            continue
        refused += 1
        assert (found.temperature, found.tau, found.tried) == (1.0, 0.0, (fitted.temperature, fitted.tau))
        np.testing.assert_array_equal(found.apply(p), p)
        assert found.thresholds == thresholds.choose(truth, arrays(table(truth, p))[1], MELANOMA)
        assert found.crossed is not None and found.without is not None and found.crossed <= found.without
        assert "not calibrated, it does not help" in found.verdict
    assert refused >= 2


def test_cross_fitting_keeps_lesions_whole(monkeypatch: pytest.MonkeyPatch):
    truth, p, prior = skewed(90, 1, 1.0)
    frame = table(truth, p).assign(group_id=[f"l{place // 3}" for place in range(90)])
    fitted_on: list[set[str]] = []
    real = module.fit

    def spy(predictions: pd.DataFrame, *rest):
        fitted_on.append(set(predictions["group_id"]))
        return real(predictions, *rest)

    monkeypatch.setattr(module, "fit", spy)
    chosen(frame, prior)
    everything, *parts = fitted_on
    assert len(everything) == 30 and len(parts) == 5
    held_out = [everything - part for part in parts]
    assert sum(map(len, held_out)) == 30 and set().union(*held_out) == everything


def test_files_of_older_code_are_read_as_calibrations_that_are_used():
    found = Calibration(**{"temperature": 1.5, "tau": 0.2, "prior": [0.1] * 7, "thresholds": {}})
    assert found.helps and found.verdict == "calibrated on validation images: temperature 1.50, tau 0.20"
