"""Thresholds of melanoma by hand: what is promised on the images they were chosen on holds there, and just."""

from __future__ import annotations

import numpy as np
import pytest

from ham_ray.evaluation import thresholds
from ham_ray.evaluation.thresholds import MELANOMA, POINTS, apply, choose

pytestmark = pytest.mark.unit


def scored(melanoma: list[float], others: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities with these of melanoma; the others are nevi."""
    p = np.zeros((len(melanoma) + len(others), 7), np.float32)
    p[:, MELANOMA] = [*melanoma, *others]
    p[:, 5] = 1 - p[:, MELANOMA]
    return np.array([MELANOMA] * len(melanoma) + [5] * len(others)), p


def test_by_hand():
    truth, p = scored([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05], [k / 20 for k in range(20)])
    found = choose(truth, p)
    assert found["sensitivity_90"] == pytest.approx(0.1) and found["sensitivity_95"] == pytest.approx(0.05)
    # just above the 18th and the 19th of the 20 others
    assert found["specificity_90"] == pytest.approx(0.85) and found["specificity_95"] == pytest.approx(0.9)
    rates = apply(truth, p, found)
    assert rates["specificity_90"].specificity == 0.9 and rates["specificity_90"].sensitivity == 0.1
    assert rates["sensitivity_90"].sensitivity == 0.9
    assert rates["sensitivity_95"] == (found["sensitivity_95"], 1.0, 0.05)


@pytest.mark.parametrize("seed", range(5))
def test_each_point_is_reached_and_the_next_threshold_would_miss_it_or_give_nothing(seed: int):
    rng = np.random.default_rng(seed)
    truth, p = scored(rng.beta(3, 2, 37).tolist(), rng.beta(1, 5, 211).tolist())
    scores = np.unique(p[:, MELANOMA].astype(np.float64))
    for name, rates in apply(truth, p, choose(truth, p)).items():
        rate, wanted = POINTS[name]
        assert getattr(rates, rate) >= wanted
        step = -1 if rate == "specificity" else 1  # towards what the point does not ask for
        place = np.searchsorted(scores, rates.threshold, side="left") + step
        worse = apply(truth, p, {name: scores[place]})[name]
        assert getattr(worse, rate) < wanted


def test_ties_are_called_together():
    truth, p = scored([0.5, 0.5], [0.5] * 9 + [0.1])
    assert apply(truth, p, choose(truth, p))["specificity_90"][1:] == (0.0, 1.0)


def test_points_without_images_are_left_out():
    truth, p = scored([], [0.1, 0.2])
    assert set(choose(truth, p)) == {"specificity_90", "specificity_95"}
    assert apply(truth, p, {"specificity_90": 0.15})["specificity_90"] == (0.15, None, 0.5)
    assert thresholds.choose(*scored([0.4], [])).keys() == {"sensitivity_90", "sensitivity_95"}
