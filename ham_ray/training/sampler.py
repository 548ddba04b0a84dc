"""Which training rows a worker holds, and in which order an epoch visits them.

Training rows are cut into `batch_size` strata of neighbouring rows; a global batch takes one row of every stratum, and
a worker holds the strata of its place in the batch. So the batches of an epoch are the same whatever the number of
workers, each worker's shard is one stretch of the table, and every row comes up once an epoch (but for the remainder,
which the shuffle draws anew each time).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampler:
    """The order of a worker's training rows; `rows` counts the whole training set, over all workers."""

    rows: int
    batch_size: int  # over all workers, divisible by their number
    seed: int
    rank: int = 0
    workers: int = 1

    @property
    def steps(self) -> int:
        """Whole batches of an epoch."""
        return self.rows // self.batch_size

    @property
    def share(self) -> int:
        """Images of a batch that are this worker's."""
        return self.batch_size // self.workers

    @property
    def bounds(self) -> slice:
        """The stretch of the training rows that this worker holds."""
        edges = self._strata()
        return slice(int(edges[self.rank * self.share]), int(edges[(self.rank + 1) * self.share]))

    def order(self, epoch: int) -> np.ndarray:
        """Return indices into the worker's rows, int64[steps, share], for each step of an epoch."""
        edges = self._strata()
        columns = [
            np.random.default_rng([self.seed, epoch, s]).permutation(np.arange(edges[s], edges[s + 1]))[: self.steps]
            for s in range(self.rank * self.share, (self.rank + 1) * self.share)
        ]
        return np.stack(columns, axis=1) - edges[self.rank * self.share]

    def _strata(self) -> np.ndarray:
        return np.arange(self.batch_size + 1) * self.rows // self.batch_size


def evaluation_bounds(rows: int, rank: int, workers: int) -> slice:
    """Return a worker's stretch of rows that must all be predicted, each once."""
    return slice(rank * rows // workers, (rank + 1) * rows // workers)
