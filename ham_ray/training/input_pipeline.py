"""From IMAGES to a worker's batches: splits by fold, shards by worker, kept in memory or streamed.

The order of rows is the sampler's, whichever way the pixels come: streamed batches are those of a shard in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import ray.train
from ray.data import Dataset

from ham_ray.cluster import decoding_cpus, task_cpus
from ham_ray.data.images import Images
from ham_ray.data.stored import StoredRows
from ham_ray.errors import UserError
from ham_ray.recipe import Recipe
from ham_ray.training.activations import Activations, Cached
from ham_ray.training.augment import DRAWS, chosen_views, draw
from ham_ray.training.decoding import Decoder, dataset
from ham_ray.training.sampler import WINDOW, Sampler, evaluation_bounds
from ham_ray.training.trainable import check_batch
from ham_ray.waiting import watched

WHOLE = "in memory"  # the name of an order of one window: runs from before there were windows have it in their identity
_READ = 1024  # images of a held-out split that are read together
Batches = Callable[[int, int], Iterator[tuple[np.ndarray, np.ndarray]]]  # of an epoch, from a step of it on


@dataclass(frozen=True)
class Splits:
    """The rows of each split and where they are stored; what is decoded, or computed, before training starts.

    kept: the splits that each worker keeps decoded, from a dataset of its shard; others are streamed.
    activations: tables of the splits, from which the workers train instead.
    window: images among which an epoch is shuffled.
    """

    rows: dict[str, pd.DataFrame]
    stored: dict[str, StoredRows]
    datasets: dict[str, Dataset]
    kept: tuple[str, ...]
    activations: dict[str, Cached] | None = None
    window: int = WINDOW


class Inputs(Protocol):
    """An array, or what reads like one along its first axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Shard:
    """Images, uint8[n, size, size, 3], or what a frozen prefix gave for them; and labels int32[n]."""

    inputs: Inputs
    labels: np.ndarray


def split_rows(images: Images, recipe: Recipe) -> dict[str, pd.DataFrame]:
    """The rows of IMAGES in each split; without a validation fold there is no such split."""
    folds = {"validation": recipe.data.validation_fold, "test": recipe.data.test_fold}
    held_out = {name: images.fold(fold) for name, fold in folds.items() if fold is not None}
    return {"training": images.fold(*recipe.training_folds), **held_out}


def split(
    images: Images,
    recipe: Recipe,
    workers: int,
    shard_memory: float,
    activations: dict[str, Cached] | None = None,
    window: int = WINDOW,
    ahead: bool = True,
) -> Splits:
    """Cut IMAGES into splits by fold; decode what the workers keep: shards that together fit `shard_memory` (bytes).

    With tables of activations nothing is decoded; where it is not to be `ahead`, each worker decodes at its start.
    """
    rows = split_rows(images, recipe)
    _check_sizes(rows, recipe, workers)
    stored = {name: images.stored(frame) for name, frame in rows.items()}
    decoded = {} if activations else {name: one for name, one in stored.items() if name != "test"}  # that is read once
    kept = keep({name: one.decoded_bytes / workers for name, one in decoded.items()}, shard_memory)
    samplers = [make_sampler(recipe, len(rows["training"]), rank, workers) for rank in range(workers)]
    datasets = {
        shard_name(name, one.rank): dataset(shard_rows(name, stored[name], one), decoding_cpus())
        for name in (kept if ahead else ())
        for one in samplers
    }
    if datasets:  # decoded before the workers take their CPUs: nobody waits for anybody
        with watched("decoding", f"{', '.join(datasets)}, by tasks of {decoding_cpus():g} CPU each"):
            datasets = {name: one.materialize() for name, one in datasets.items()}
    return Splits(rows, stored, datasets, kept, activations, window)


def keep(needs: dict[str, float], shard_memory: float) -> tuple[str, ...]:
    """Choose the splits whose shards, in bytes, fit in memory one beside the other; say so."""
    kept: list[str] = []
    for name, need in needs.items():
        if need + sum(needs[other] for other in kept) <= shard_memory:
            kept.append(name)
    how = {name: "kept in memory" if name in kept else "streamed" for name in needs}
    if needs:
        each = "; ".join(f"{name} {need / 2**20:.0f} MiB, {how[name]}" for name, need in needs.items())
        print(f"decoded images of a worker: {each} (--shard-memory {shard_memory / 2**30:g} GiB)", flush=True)
    return tuple(kept)


def order_name(images: Images, recipe: Recipe) -> str:
    """Name the order of an epoch's batches, as far as a run depends on it."""
    whole = len(images.fold(*recipe.training_folds)) <= WINDOW
    return WHOLE if whole else f"windows of {WINDOW} images"


def _check_sizes(rows: dict[str, pd.DataFrame], recipe: Recipe, workers: int) -> None:
    small = [f"{len(frame)} {name} images" for name, frame in rows.items() if len(frame) < workers]
    if small:
        raise UserError(f"{', '.join(small)} for {workers} worker(s): each needs at least one; are all folds filled?")
    check_batch(len(rows["training"]), recipe.data.batch_size, workers)


def shard_name(name: str, rank: int) -> str:
    """Name the dataset of a worker's shard of a split."""
    return f"{name}-{rank}"


def shard_rows(name: str, rows: StoredRows, sampler: Sampler) -> StoredRows:
    """Take a worker's shard of a split."""
    return rows[sampler.bounds if name == "training" else evaluation_bounds(len(rows), sampler.rank, sampler.workers)]


def make_sampler(recipe: Recipe, rows: int, rank: int = 0, workers: int = 1, window: int = WINDOW) -> Sampler:
    """Make the sampler of a worker; `rows` counts the training images over all workers."""
    return Sampler(rows, recipe.data.batch_size, recipe.seed, rank, workers, window)


def cached_shard(cached: Cached, labels: np.ndarray, rank: int, workers: int) -> Shard:
    """Take a worker's shard of the validation split from a table of activations; `labels` are of the whole split."""
    bounds = evaluation_bounds(len(labels), rank, workers)
    return Shard(Activations(cached, bounds), labels[bounds])


def cached_batches(cached: Cached, labels: np.ndarray, recipe: Recipe, sampler: Sampler) -> Batches:
    """Make the batches from a table of activations: the same images, in the views that augmentation makes of them."""
    table, labels_here, share = Activations(cached, sampler.bounds), labels[sampler.bounds], sampler.share
    mine = slice(sampler.rank * share, (sampler.rank + 1) * share)

    def drawn(step: int) -> np.ndarray:
        return chosen_views(draw(recipe.seed, step, recipe.data.batch_size, DRAWS, stream=0).numpy()[mine])

    def batches(epoch: int, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step, rows in enumerate(sampler.order(epoch)[first:], start=epoch * sampler.steps + first):
            views = drawn(step) if recipe.augmentation.name == "light" else np.zeros(share, int)
            yield table.take(rows, views), labels_here[rows]

    def ahead(epoch: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return _ahead(batches(epoch, first))

    return ahead


def _ahead(result: Iterator[Any]) -> Iterator[Any]:
    """The same, each made while the one before is used: reading a large table from disk then costs no time."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, result, None)
        while (one := coming.result()) is not None:
            coming = pool.submit(next, result, None)
            yield one


def kept_shard(name: str, rows: StoredRows, rank: int, decoder: Decoder, ahead: bool) -> Shard:
    """Decode a worker's shard of a split into memory, or take it from what was decoded `ahead`; `rows` are its rows."""
    cpus = decoding_cpus() if ahead else task_cpus()
    decoded = ray.train.get_dataset_shard(shard_name(name, rank)) if ahead else dataset(rows, cpus)
    return Shard(decoder.whole(rows, cpus, lambda: decoded.iter_batches(batch_size=None)), rows.labels)


def decoded(rows: StoredRows) -> Shard:
    """Decode these rows by Ray Data into the memory of this process."""
    cpus = task_cpus()
    with watched("decoding", f"{len(rows):,} images, by tasks of {decoding_cpus():g} CPU each"):
        return Shard(
            Decoder().whole(rows, cpus, lambda: dataset(rows, cpus).iter_batches(batch_size=None)), rows.labels
        )


def image_batches(shard: Shard, sampler: Sampler) -> Batches:
    """Make the batches of a worker's training images: the same ones, in memory or streamed."""
    inputs, labels = shard.inputs, shard.labels

    def kept(epoch: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in sampler.order(epoch)[first:]:
            yield inputs[rows], labels[rows]

    def streamed(epoch: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert isinstance(inputs, StreamedImages)
        order = sampler.order(epoch)[first:]
        pixels = inputs.in_order(order.ravel(), sampler.window_steps * sampler.share)
        return zip(_cut(pixels, sampler.share), labels[order], strict=True)

    return streamed if isinstance(inputs, StreamedImages) else kept


def _cut(pieces: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Cut what comes in pieces of any length into pieces of `length`; the last may be shorter."""
    pending: list[np.ndarray] = []
    for piece in pieces:
        pending.append(piece)
        while sum(map(len, pending)) >= length:
            joined = np.concatenate(pending) if len(pending) > 1 else pending[0]
            yield joined[:length]
            pending = [joined[length:]]
    if pending and len(joined := np.concatenate(pending)):
        yield joined


class StreamedImages:
    """Images decoded anew each time they are read: `Inputs` for slices that follow each other, or in another order."""

    def __init__(self, rows: StoredRows, decoder: Decoder) -> None:
        self.rows, self.decoder = rows, decoder
        self._at = -1  # the row that the running stream comes to next
        self._pieces: Iterator[np.ndarray] = iter(())
        self._ready = np.empty((0, rows.size, rows.size, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read a slice: on from the one before, or from its own first row."""
        if not isinstance(rows, slice):
            raise TypeError("streamed images are read in slices")
        start, stop, _ = rows.indices(len(self))
        if start != self._at:
            self._pieces, self._ready = self.decoder.stream(self.rows[start:], _READ), self._ready[:0]
        pieces = [self._ready]
        while sum(map(len, pieces)) < stop - start:
            pieces.append(next(self._pieces))
        joined = np.concatenate(pieces)
        self._at, self._ready = stop, joined[stop - start :]
        return joined[: stop - start]

    def in_order(self, rows: np.ndarray, window: int) -> Iterator[np.ndarray]:
        """Read the rows of these numbers in this order, some at a time; so many of them are read together."""
        return self.decoder.stream(self.rows[rows], window)
