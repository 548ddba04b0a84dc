"""Thresholds of melanoma by hand: what is promised on the images they were chosen on holds there, and just."""

from __future__ import annotations

import numpy as np
import pytest
from ham10000 import MELANOMA

from ham_ray.evaluation import thresholds
from ham_ray.evaluation.thresholds import POINTS, called, choose

pytestmark = pytest.mark.unit


def scored(melanoma: list[float], others: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities with these of melanoma; the others are nevi."""
    p = np.zeros((len(melanoma) + len(others), 7), np.float32)
    p[:, MELANOMA] = [*melanoma, *others]
    p[:, 5] = 1 - p[:, MELANOMA]
    return np.array([MELANOMA] * len(melanoma) + [5] * len(others)), p


def rates(truth: np.ndarray, p: np.ndarray, chosen: dict[str, float]) -> dict[str, dict[str, float]]:
    """What each threshold does: the shares of melanomas at or above it, and of all other images below it."""
    melanoma = truth == MELANOMA
    return {
        name: {"sensitivity": reached[melanoma].mean(), "specificity": 1 - reached[~melanoma].mean()}
        for name, reached in called(p, chosen, MELANOMA).items()
    }


def test_by_hand():
    truth, p = scored([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05], [k / 20 for k in range(20)])
    found = choose(truth, p, MELANOMA)
    assert found["sensitivity_90"] == pytest.approx(0.1) and found["sensitivity_95"] == pytest.approx(0.05)
    # just above the 18th and the 19th of the 20 others
    assert found["specificity_90"] == pytest.approx(0.85) and found["specificity_95"] == pytest.approx(0.9)
    reached = rates(truth, p, found)
    assert reached["specificity_90"] == pytest.approx({"sensitivity": 0.1, "specificity": 0.9})
    assert reached["sensitivity_90"]["sensitivity"] == 0.9
    assert reached["sensitivity_95"] == pytest.approx({"sensitivity": 1.0, "specificity": 0.05})


@pytest.mark.parametrize("seed", range(5))
def test_each_point_is_reached_and_the_next_threshold_would_miss_it_or_give_nothing(seed: int):
    rng = np.random.default_rng(seed)
    truth, p = scored(rng.beta(3, 2, 37).tolist(), rng.beta(1, 5, 211).tolist())
    scores = np.unique(p[:, MELANOMA].astype(np.float64))
    chosen = choose(truth, p, MELANOMA)
    for name, found in rates(truth, p, chosen).items():
        rate, wanted = POINTS[name]
        assert found[rate] >= wanted
        step = -1 if rate == "specificity" else 1  # towards what the point does not ask for
        place = np.searchsorted(scores, chosen[name], side="left") + step
        assert rates(truth, p, {name: scores[place]})[name][rate] < wanted


def test_ties_are_called_together():
    truth, p = scored([0.5, 0.5], [0.5] * 9 + [0.1])
    assert rates(truth, p, choose(truth, p, MELANOMA))["specificity_90"] == {"sensitivity": 0.0, "specificity": 1.0}


def test_points_without_images_are_left_out():
    truth, p = scored([], [0.1, 0.2])
    assert set(choose(truth, p, MELANOMA)) == {"specificity_90", "specificity_95"}
    assert thresholds.choose(*scored([0.4], []), MELANOMA).keys() == {"sensitivity_90", "sensitivity_95"}
