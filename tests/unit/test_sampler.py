"""Which rows a worker holds and in which order: the same global batches for any number of workers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ham_ray.errors import UserError
from ham_ray.training.sampler import Sampler, evaluation_bounds
from ham_ray.training.trainable import check_batch

pytestmark = pytest.mark.unit
ROWS = 103  # not a multiple of the batch
BATCH = 8


def global_batches(workers: int, epoch: int, seed: int = 0) -> np.ndarray:
    """The row numbers of each step's global batch, joined over the workers in the order of ranks."""
    table = pd.DataFrame({"row": np.arange(ROWS)})
    parts = []
    for rank in range(workers):
        sampler = Sampler(ROWS, BATCH, seed, rank, workers)
        held = table.iloc[sampler.bounds]["row"].to_numpy()
        order = sampler.order(epoch)
        assert order.shape == (sampler.steps, sampler.share) == (ROWS // BATCH, BATCH // workers)
        parts.append(held[order])
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_the_global_batches_do_not_depend_on_the_number_of_workers(workers: int):
    np.testing.assert_array_equal(global_batches(workers, epoch=3), global_batches(1, epoch=3))


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
