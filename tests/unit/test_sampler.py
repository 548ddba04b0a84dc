"""Which rows a worker holds and in which order: the same global batches for any number of workers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ham_ray.errors import UserError
from ham_ray.training import sampler as sampler_module
from ham_ray.training.sampler import Sampler, evaluation_bounds
from ham_ray.training.trainable import check_batch

pytestmark = pytest.mark.unit
ROWS = 103  # not a multiple of the batch
BATCH = 8


def global_batches(workers: int, epoch: int, seed: int = 0, **more: int) -> np.ndarray:
    """The row numbers of each step's global batch, joined over the workers in the order of ranks."""
    table = pd.DataFrame({"row": np.arange(ROWS)})
    parts = []
    for rank in range(workers):
        sampler = Sampler(ROWS, BATCH, seed, rank, workers, **more)
        held = table.iloc[sampler.bounds]["row"].to_numpy()
        order = sampler.order(epoch)
        assert order.shape == (sampler.steps, sampler.share) == (ROWS // BATCH, BATCH // workers)
        parts.append(held[order])
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("window", [ROWS, 32])
def test_the_global_batches_do_not_depend_on_the_number_of_workers(workers: int, window: int):
    np.testing.assert_array_equal(
        global_batches(workers, epoch=3, window=window), global_batches(1, epoch=3, window=window)
    )


@pytest.mark.parametrize("window", [ROWS, 8192])
def test_a_stratum_of_one_window_is_permuted_whole(window: int):
    """The order of runs that were begun before there were windows."""
    edges = np.arange(BATCH + 1) * ROWS // BATCH
    expected = [
        np.random.default_rng([7, 2, s]).permutation(np.arange(edges[s], edges[s + 1]))[: ROWS // BATCH]
        for s in range(BATCH)
    ]
    np.testing.assert_array_equal(global_batches(1, epoch=2, seed=7, window=window), np.stack(expected, axis=1))


def test_a_window_holds_whole_blocks_in_an_order_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampler_module, "BLOCK", 5)
    sampler = Sampler(rows=400, batch_size=4, seed=1, window=40)  # four strata of 100 rows: 20 blocks, 10 windows
    first, second = (sampler.order(epoch)[:, 2] - 200 for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100))
    windows = [sorted({int(row) // 5 for row in first[start : start + 10]}) for start in range(0, 100, 10)]
    assert [len(blocks) for blocks in windows] == [2] * 10  # ten rows are two blocks
    assert windows != sorted(windows) and any(b - a > 1 for a, b in windows)
    assert first[:10].tolist() != sorted(first[:10].tolist())
    assert windows != [sorted({int(row) // 5 for row in second[start : start + 10]}) for start in range(0, 100, 10)]


def test_an_epoch_visits_each_row_at_most_once_and_drops_only_the_remainder():
    visited = global_batches(2, epoch=0).ravel()
    assert len(visited) == ROWS // BATCH * BATCH == len(set(visited))


def test_the_remainder_is_drawn_anew_each_epoch():
    seen = set()
    for epoch in range(12):
        seen |= set(global_batches(1, epoch).ravel())
    assert seen == set(range(ROWS))


def test_epochs_and_seeds_shuffle_differently_and_repeat():
    assert not np.array_equal(global_batches(1, 0), global_batches(1, 1))
    assert not np.array_equal(global_batches(1, 0, seed=0), global_batches(1, 0, seed=1))
    np.testing.assert_array_equal(global_batches(1, 5), global_batches(1, 5))


@pytest.mark.parametrize("workers", [1, 3, 8, 200])
def test_evaluation_shards_hold_each_row_once_in_order(workers: int):
    table = pd.DataFrame({"row": np.arange(ROWS)})
    joined = pd.concat([table.iloc[evaluation_bounds(len(table), rank, workers)] for rank in range(workers)])
    assert joined["row"].tolist() == list(range(ROWS))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="batch_size 64 does not divide over 3 workers; for example 63 does"):
        check_batch(1000, 64, 3)


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(UserError, match="more than the 50 training images; at most 50"):
        check_batch(50, 64, 2)
