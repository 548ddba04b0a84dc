"""Which training rows a worker holds, and in which order an epoch visits them.

Training rows are cut into `batch_size` strata of neighbouring rows; a global batch takes one row of every stratum, and
a worker holds the strata of its place in the batch. So the batches of an epoch follow from seed and epoch alone,
whatever the number of workers and wherever the images are kept; each worker's shard is one stretch of the table, and
every row comes up once an epoch (but for the remainder, which the shuffle draws anew each time).

A stratum is visited in windows: blocks of neighbouring rows are permuted, then the rows within a window of that order.
The windows of all strata hold `WINDOW` images, so a shard of any size can be streamed through a memory of that size
(as MosaicML's StreamingDataset does: shuffles by block, Apache-2.0, `py1e`). Rows that are one window are permuted
stratum by stratum, each whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WINDOW = 8192  # images of a global window: HAM10000 is one; some 120 MB encoded at 128 px
BLOCK = 64  # rows that are read together


@dataclass(frozen=True)
class Sampler:
    """The order of a worker's training rows; `rows` counts the whole training set, over all workers.

    window: images among which the rows are shuffled, over all workers; runs from before it have none.
    """

    rows: int
    batch_size: int  # over all workers, divisible by their number
    seed: int
    rank: int = 0
    workers: int = 1
    window: int = WINDOW

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

    @property
    def window_steps(self) -> int:
        """Steps of an epoch between two of which all rows of a window are visited."""
        return max(1, self.window // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Return indices into the worker's rows, int64[steps, share], for each step of an epoch."""
        edges = self._strata()
        columns = [
            self._visits(np.arange(edges[stratum], edges[stratum + 1]), epoch, stratum)[: self.steps]
            for stratum in range(self.rank * self.share, (self.rank + 1) * self.share)
        ]
        return np.stack(columns, axis=1) - edges[self.rank * self.share]

    def _visits(self, rows: np.ndarray, epoch: int, stratum: int) -> np.ndarray:
        """Order the rows of a stratum as an epoch visits them."""
        random, length = np.random.default_rng([self.seed, epoch, stratum]), self.window_steps
        if self.rows <= self.window:
            return random.permutation(rows)
        blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
        shuffled = np.concatenate([blocks[number] for number in random.permutation(len(blocks))])
        windows = [random.permutation(shuffled[start : start + length]) for start in range(0, len(rows), length)]
        return np.concatenate(windows)

    def _strata(self) -> np.ndarray:
        return np.arange(self.batch_size + 1) * self.rows // self.batch_size


def evaluation_bounds(rows: int, rank: int, workers: int) -> slice:
    """Return a worker's stretch of rows that must all be predicted, each once."""
    return slice(rank * rows // workers, (rank + 1) * rows // workers)
