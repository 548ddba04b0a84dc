"""Which rows a worker holds, and in which order an epoch visits them.

Training rows are cut into `batch_size` strata of neighbouring rows; a global batch takes one row of every stratum, and
a worker holds the strata of its place in the batch. So the batches of an epoch are the same whatever the number of
workers, each worker's shard is one stretch of the table, and every row comes up once an epoch (but for the remainder,
which the shuffle draws anew each time).
"""

from __future__ import annotations

import numpy as np

from ham_ray.errors import UserError


def check_batch(rows: int, batch_size: int, workers: int) -> None:
    """Refuse a batch that does not divide over the workers or is larger than the training set.

    Raises:
        UserError: with the arithmetic.
    """
    if batch_size % workers:
        near = max(workers, batch_size // workers * workers)
        raise UserError(f"batch_size {batch_size} does not divide over {workers} workers; for example {near} does")
    if rows < batch_size:
        raise UserError(
            f"batch_size {batch_size} is more than the {rows} training images; at most {rows // workers * workers}"
        )


def training_bounds(rows: int, rank: int, workers: int, batch_size: int) -> slice:
    """The stretch of the training rows that a worker holds."""
    edges = _strata(rows, batch_size)
    share = batch_size // workers
    return slice(int(edges[rank * share]), int(edges[(rank + 1) * share]))


def evaluation_bounds(rows: int, rank: int, workers: int) -> slice:
    """A worker's stretch of rows that must all be predicted, each once."""
    return slice(rank * rows // workers, (rank + 1) * rows // workers)


def epoch_order(rows: int, rank: int, workers: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Places in the worker's shard, int64[steps, batch_size / workers], for each step of an epoch.

    `rows` counts the whole training set, over all workers.
    """
    edges, steps, share = _strata(rows, batch_size), rows // batch_size, batch_size // workers
    first = edges[rank * share]
    columns = [
        np.random.default_rng([seed, epoch, stratum]).permutation(np.arange(edges[stratum], edges[stratum + 1]))[:steps]
        for stratum in range(rank * share, (rank + 1) * share)
    ]
    return np.stack(columns, axis=1) - first


def _strata(rows: int, batch_size: int) -> np.ndarray:
    return np.arange(batch_size + 1) * rows // batch_size
