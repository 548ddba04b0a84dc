"""Lesion bootstrap: the weighted metrics against scikit-learn, and what resampling lesions must do to an interval."""

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES, CODES, LABELS, PROBABILITIES
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from ham_ray.errors import UserError
from ham_ray.evaluation import intervals as resampling
from ham_ray.evaluation import metrics
from ham_ray.evaluation.intervals import (
    METRICS,
    WeightedMetrics,
    by_predicted,
    intervals,
    paired_difference,
    resampled_weights,
    sensitivities,
    shares,
)

pytestmark = pytest.mark.unit


def table(y_true, p, groups=None):
    """A PREDICTIONS table; each image is its own lesion unless `groups` says otherwise."""
    ids = [f"i{place:05}" for place in range(len(y_true))]
    frame = pd.DataFrame({"image_id": ids, "group_id": ids if groups is None else groups, "y_true": y_true})
    frame[list(PROBABILITIES)] = np.asarray(p, np.float32)
    return frame.assign(lesion_id=frame["group_id"], fold=0, split="test")


def noisy(y_true, skill, seed):
    """Softmax of noise plus `skill` for the right class, rounded so that there are ties."""
    logits = np.random.default_rng(seed).normal(size=(len(y_true), 7))
    logits[np.arange(len(y_true)), y_true] += skill
    p = np.exp(logits.round(1))
    return p / p.sum(axis=1, keepdims=True)


@pytest.fixture
def skewed():
    """210 images with HAM10000's kind of imbalance."""
    y_true = np.repeat(np.arange(7), [10, 15, 30, 5, 30, 110, 10])
    return y_true, noisy(y_true, 1.5, 0)


def slow(y_true, p, weight):
    """The same metrics by scikit-learn with `sample_weight`."""
    seen = weight > 0
    y_true, p, weight = y_true[seen], p[seen], weight[seen]
    called = p.argmax(axis=1)
    present = np.unique(y_true)
    recalls = recall_score(y_true, called, labels=range(7), average=None, sample_weight=weight, zero_division=np.nan)
    f1 = {"labels": range(7), "zero_division": 0, "sample_weight": weight}
    aucs = [roc_auc_score(y_true == label, p[:, label], sample_weight=weight) for label in present]
    return {
        "accuracy": accuracy_score(y_true, called, sample_weight=weight),
        "macro_f1": f1_score(y_true, called, average="macro", **f1),
        "weighted_f1": f1_score(y_true, called, average="weighted", **f1),
        "balanced_accuracy": np.nanmean(recalls),
        "macro_auc": np.mean(aucs),
        "melanoma_sensitivity": recalls[LABELS["mel"]],
        "melanoma_auc": roc_auc_score(y_true == LABELS["mel"], p[:, LABELS["mel"]], sample_weight=weight),
        "malignant_auc": roc_auc_score(
            np.isin(y_true, [0, 1, 4]), p[:, [0, 1, 4]].sum(axis=1, dtype=p.dtype), sample_weight=weight
        ),
        **dict(zip(sensitivities(CLASSES), recalls, strict=True)),
    }


def test_weighted_metrics_equal_sklearn(skewed):
    y_true, p = skewed
    weights = np.random.default_rng(1).integers(0, 4, (6, len(y_true))).astype(float)
    fast = WeightedMetrics(y_true, p, CLASSES)(weights)
    for row, weight in enumerate(weights):
        expected = slow(y_true, p, weight)
        assert {name: fast[name][row] for name in fast} == pytest.approx(expected), row


def test_weighted_metrics_leave_out_an_absent_class(skewed):
    y_true, p = skewed
    weights = np.where(y_true == LABELS["vasc"], 0.0, 1.0)[None]
    fast = WeightedMetrics(y_true, p, CLASSES)(weights)
    assert {name: fast[name][0] for name in fast} == pytest.approx(slow(y_true, p, weights[0]), nan_ok=True)
    assert np.isnan(fast["sensitivity_vasc"][0])


def test_a_class_neither_present_nor_predicted_has_f1_zero():
    y_true, p = np.array([5, 5, 4]), np.eye(7)[[5, 4, 4]]
    assert WeightedMetrics(y_true, p, CLASSES)(np.ones((1, 3)))["macro_f1"][0] == pytest.approx((2 / 3 + 2 / 3) / 7)


def test_auc_ties_count_one_half():
    y_true = np.array([0, 0, 1, 1])
    p = np.zeros((4, 7))
    p[:, 0] = [0.9, 0.5, 0.5, 0.1]  # pairs: 1, 1, 1/2, 1
    p[:, 1] = 1 - p[:, 0]
    assert WeightedMetrics(y_true, p, CLASSES)(np.ones((1, 4)))["macro_auc"][0] == pytest.approx(3.5 / 4)
    # the tied negative weighs 3: (1·3 + 1 + 3/2 + 1) of 8
    assert WeightedMetrics(y_true, p, CLASSES)(np.array([[1.0, 1, 3, 1]]))["macro_auc"][0] == pytest.approx(6.5 / 8)


def test_point_estimates_are_those_of_metrics(skewed):
    found, expected = intervals(table(*skewed), resamples=50), metrics.evaluate(*skewed, CLASSES)
    assert {name: found[name].value for name in METRICS} == pytest.approx(
        {name: expected[name] for name in METRICS}, abs=1e-6
    )
    assert all(found[name].low <= found[name].value <= found[name].high for name in METRICS)


def test_resamples_draw_whole_lesions_and_keep_the_strata():
    y_true = np.array([5] * 12 + [4] * 8)
    groups = pd.Series([f"nv{i // 3}" for i in range(12)] + [f"mel{i // 2}" for i in range(8)])
    (weights,) = resampled_weights(groups, y_true, 60, seed=0)
    assert weights.shape == (60, 20)
    for _, members in groups.groupby(groups):
        assert (weights[:, members.index] == weights[:, members.index[:1]]).all()
    np.testing.assert_allclose(weights[:, :12].sum(axis=1), 12)
    np.testing.assert_allclose(weights[:, 12:].sum(axis=1), 8)
    assert len(np.unique(weights, axis=0)) > 30


def drawn_at_once(groups: list[str], y_true: np.ndarray, resamples: int) -> np.ndarray:
    """The weights by their definition: a hundred resamples after the other, class by class, one draw at a time."""
    rng, blocks = np.random.default_rng(0), []
    names = list(dict.fromkeys(groups))
    label = {name: y for name, y in zip(groups, y_true, strict=True)}
    for start in range(0, resamples, 100):
        weights = np.zeros((min(100, resamples - start), len(names)))
        for y in sorted({*label.values()}):
            own = [number for number, name in enumerate(names) if label[name] == y]
            for row, draws in enumerate(rng.integers(0, len(own), (len(weights), len(own) - 1))):
                for draw in draws:
                    weights[row, own[draw]] += 1
            weights[:, own] *= len(own) / (len(own) - 1)
        blocks.append(weights[:, [names.index(name) for name in groups]])
    return np.concatenate(blocks)


@pytest.mark.parametrize("at_once", [8, 12, 100])
def test_resamples_are_the_same_however_many_are_computed_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch):
    y_true = np.repeat([0, 2, 5], [9, 15, 36])
    groups = [f"{y}-{number // 3}" for number, y in enumerate(y_true)]
    monkeypatch.setattr(resampling, "_BYTES", 8 * 60 * at_once)
    blocks = [*resampled_weights(pd.Series(groups), y_true, 230, 0)]
    assert max(map(len, blocks)) == at_once
    np.testing.assert_array_equal(np.concatenate(blocks), drawn_at_once(groups, y_true, 230))


def test_intervals_of_many_images_take_a_kibibyte_an_image_and_no_other_value(monkeypatch: pytest.MonkeyPatch):
    """All resamples at once would take 1.6 KiB an image for the weights alone; 8 of them are as good as 100."""
    count, resamples = 10_000, 200
    y_true = np.sort(np.random.default_rng(0).choice(7, count, p=[0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02]))
    frame = table(y_true, noisy(y_true, 1.5, 1), [f"{y}-{number // 2}" for number, y in enumerate(y_true)])
    asked = {"nv": (y_true == 5, frame["p_nv"].to_numpy() > 0.5), "mel": (y_true == 4, frame["p_mel"].to_numpy() > 0.5)}

    def computed() -> tuple[dict, float]:
        tracemalloc.start()
        try:
            result = {**intervals(frame, resamples), **shares(frame, asked, resamples)}
            return result, tracemalloc.get_traced_memory()[1] / count
        finally:
            tracemalloc.stop()

    result, _ = computed()
    monkeypatch.setattr(resampling, "_BYTES", 0)
    bounded, peak = computed()
    assert bounded == result
    assert peak < 1024


def test_resamples_of_a_group_with_two_labels():
    """Equal pixels under two diagnoses are one group: it moves as one, in the stratum of its most frequent class."""
    (weights,) = resampled_weights(pd.Series(["a", "a", "a", "b"]), np.array([4, 4, 5, 4]), 40, seed=0)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert set(weights[:, 2]) == {0, 2}  # one of two groups is drawn and weighs two


def test_seed_decides(skewed):
    frame = table(*skewed)
    assert intervals(frame, resamples=100) == intervals(frame, resamples=100)
    assert intervals(frame, resamples=100) != intervals(frame, resamples=100, seed=1)


def test_images_of_one_lesion_widen_the_interval(skewed):
    """Each image four times adds no information: by lesion the width stays, by image it falsely halves."""
    y_true, p = (np.repeat(part, 4, axis=0) for part in skewed)
    lesions = np.repeat([f"l{i}" for i in range(len(skewed[0]))], 4)
    once = intervals(table(*skewed))["accuracy"]
    by_lesion = intervals(table(y_true, p, lesions))["accuracy"]
    by_image = intervals(table(y_true, p))["accuracy"]
    assert by_lesion.high - by_lesion.low == pytest.approx(once.high - once.low, rel=0.15)
    assert by_lesion.high - by_lesion.low > 1.6 * (by_image.high - by_image.low)


def simulated(rng: np.random.Generator, counts: np.ndarray, called: np.ndarray) -> tuple[np.ndarray, ...]:
    """Labels, calls and lesions of images: lesions of seven classes, one to three images each.

    An image is called as `called[class]` says: as its lesion in half of the cases, by itself in the others.
    """
    lesion = np.repeat(np.arange(counts.sum()), rng.integers(1, 4, counts.sum()))
    label = np.repeat(np.arange(7), counts)[lesion]
    reach = called.cumsum(axis=1)[label]
    alike, own = rng.random(counts.sum())[lesion], rng.random(len(lesion))
    chance = np.where(rng.random(len(lesion)) < 0.5, alike, own)
    return label, (chance[:, None] > reach).sum(axis=1), lesion


def test_intervals_of_simulated_lesions_cover_the_truth_as_often_as_they_say():
    """Of 400 test folds with as many lesions of each class as HAM10000's (fewer nevi), 93 to 97 % hold the truth."""
    counts, called = np.array([46, 65, 145, 15, 123, 300, 20]), np.full((7, 7), 0.05) + 0.65 * np.eye(7)
    table = counts[:, None] * called
    f1 = 2 * table.diagonal() / (table.sum(axis=0) + table.sum(axis=1))
    truth = {"accuracy": 0.7, "balanced_accuracy": 0.7, "macro_f1": f1.mean()}
    held = dict.fromkeys(truth, 0)
    for seed in range(400):
        y_true, calls, lesion = simulated(np.random.default_rng(seed), counts, called)
        blocks = [*resampled_weights(pd.Series(lesion), y_true, 400, seed)]
        drawn = [by_predicted(y_true, np.eye(7)[calls], weights)[0] for weights in blocks]
        for name, value in truth.items():
            low, high = np.percentile(np.concatenate([block[name] for block in drawn]), [2.5, 97.5])
            held[name] += low <= value <= high
    assert {name: round(count / 400, 3) for name, count in held.items() if not 0.93 <= count / 400 <= 0.97} == {}


def test_interval_holds_95_percent_of_the_resamples():
    """400 lesions of one class, half of them right: the binomial's .5 ± 1.96 · .025."""
    y_true = np.full(400, LABELS["nv"])
    p = np.eye(7)[np.where(np.arange(400) % 2, LABELS["nv"], LABELS["mel"])]
    found = intervals(table(y_true, p), resamples=4000)["accuracy"]
    assert (found.low, found.high) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.004)


def test_paired_difference_of_a_table_with_itself_is_zero(skewed):
    frame = table(*skewed)
    found = paired_difference(frame, frame.sample(frac=1, random_state=0), "macro_f1", resamples=50)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_paired_difference_is_a_minus_b_and_narrower_than_unpaired(skewed):
    y_true, p = skewed
    better, worse = table(y_true, noisy(y_true, 3.0, 0)), table(y_true, p)
    found = paired_difference(better, worse, "accuracy")
    assert found.value == pytest.approx(
        metrics.accuracy(y_true, noisy(y_true, 3.0, 0)) - metrics.accuracy(y_true, p), abs=1e-6
    )
    assert 0 < found.low < found.value < found.high
    alone = [intervals(frame)["accuracy"] for frame in (better, worse)]
    assert found.high - found.low < sum(each.high - each.low for each in alone)


def test_paired_difference_has_the_width_of_the_images_own_differences(skewed):
    """Each image its own lesion: the variance of a stratified sum of differences, worked out from them."""
    y_true, p = skewed
    better = noisy(y_true, 3.0, 0)
    found = paired_difference(table(y_true, better), table(y_true, p), "accuracy", resamples=4000)
    each = (better.argmax(axis=1) == y_true).astype(float) - (p.argmax(axis=1) == y_true)
    strata = [each[y_true == label] for label in np.unique(y_true)]
    deviation = np.sqrt(sum(len(part) * part.var(ddof=1) for part in strata)) / len(y_true)
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.08)


def test_paired_difference_refuses_other_images_labels_and_metrics(skewed):
    frame = table(*skewed)
    with pytest.raises(UserError, match="did you mean macro_f1"):
        paired_difference(frame, frame, "macrof1")
    with pytest.raises(UserError, match="i00000"):
        paired_difference(frame, frame.iloc[1:], "accuracy")
    with pytest.raises(UserError, match="different labels"):
        paired_difference(frame, frame.assign(y_true=(frame["y_true"] + 1) % 7), "accuracy")
    with pytest.raises(UserError, match="undefined"):
        paired_difference(frame.iloc[:9], frame.iloc[:9], "melanoma_sensitivity")


def test_undefined_metrics_are_left_out():
    found = intervals(table(np.array([5, 5]), np.eye(7)[[5, 4]]), resamples=20)
    assert set(found) == {"accuracy", "macro_f1", "weighted_f1", "balanced_accuracy", "sensitivity_nv"}


def test_nan_is_refused(skewed):
    y_true, p = skewed[0], skewed[1].copy()
    p[3] = np.nan
    with pytest.raises(UserError, match=r"rows \[3\]"):
        intervals(table(y_true, p))


def test_all_metrics_of_a_resample_take_less_than_a_quarter_of_one_of_sklearn():
    y_true = np.random.default_rng(0).choice(7, 2000, p=[0.03, 0.05, 0.11, 0.02, 0.11, 0.66, 0.02])
    p = noisy(y_true, 2, 0)
    frame = table(y_true, p, (np.arange(2000) * 3 // 4).astype(str))

    def computing(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    theirs = computing(lambda: [roc_auc_score(y_true, p, multi_class="ovr") for _ in range(10)]) / 10
    assert computing(lambda: intervals(frame, resamples=500)) / 500 < theirs / 4


def test_every_class_has_a_sensitivity():
    assert tuple(f"sensitivity_{dx}" for dx in CODES) == sensitivities(CLASSES)
