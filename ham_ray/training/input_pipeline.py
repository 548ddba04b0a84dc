"""From IMAGES to a worker's batches: splits by fold, parts by worker, kept in memory or streamed."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import ray.train
from ray.data import Dataset

from ham_ray.cluster import decoding_cpus, free_cpus
from ham_ray.data.images import Images, read, read_pixels
from ham_ray.errors import UserError
from ham_ray.recipe import Recipe
from ham_ray.training.activations import Activations
from ham_ray.training.augment import DRAWS, chosen_views, draw
from ham_ray.training.sampler import Sampler, evaluation_bounds
from ham_ray.training.trainable import check_batch
from ham_ray.waiting import watched

IN_MEMORY = "in memory"
STALLED = 30.0  # seconds without a free CPU after which a worker waits no longer for decoded images
_LOOK = 2.0  # seconds between two looks
Batches = Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class Splits:
    """The rows of each split, for each worker a dataset of its part of them, and tables of activations, where kept."""

    rows: dict[str, pd.DataFrame]
    datasets: dict[str, Dataset]
    resident: bool
    activations: dict[str, str] | None = None


@dataclass
class Source:
    """IMAGES and the rows of each split: from which a worker can decode its part without Ray Data.

    `alone` is set where it had to: what Ray Data decoded before may be gone as well, and is not waited for again.
    """

    images: Images
    rows: dict[str, pd.DataFrame]
    alone: bool = False


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
    activations: dict[str, str] | None = None,
    tested: bool = True,
) -> Splits:
    """Cut IMAGES into splits by fold and into parts by worker; without test images where nothing is to be `tested`.

    A training part that fits `shard_memory` (bytes) is decoded once and kept; a larger one is decoded anew each epoch.
    With tables of activations it is not decoded at all.
    """
    rows = split_rows(images, recipe)
    _check_sizes(rows, recipe, workers)
    resident = batching(images, recipe, workers, shard_memory) == IN_MEMORY
    parts = {
        _part(name, rank): _part_rows(name, frame, make_sampler(recipe, len(frame), rank, workers))
        for name, frame in rows.items()
        for rank in range(workers)
        if not (name == "training" and activations) and (tested or name != "test")
    }
    if not activations:
        _tell_memory(images, rows, workers, shard_memory, resident)
    datasets = {name: read(images, part) for name, part in parts.items()}
    if resident:  # decoded before the workers take their CPUs: nobody waits for anybody
        with watched("decoding", f"{', '.join(datasets)}, by tasks of {decoding_cpus():g} CPU each"):
            datasets = {name: dataset.materialize() for name, dataset in datasets.items()}
    return Splits(rows, datasets, resident, activations)


def _tell_memory(
    images: Images, rows: dict[str, pd.DataFrame], workers: int, shard_memory: float, resident: bool
) -> None:
    need, held_out = (_decoded(images, len(rows.get(name, ()))) / workers for name in ("training", "validation"))
    print(
        f"training part of a worker: {need / 2**20:.0f} MiB decoded, "
        + ("kept in memory" if resident else "streamed every epoch")
        + f" (--shard-memory {shard_memory / 2**20:.0f} MiB); with {held_out / 2**20:.0f} MiB of validation beside"
    )


def batching(images: Images, recipe: Recipe, workers: int, shard_memory: float) -> str:
    """How batches are made, as far as a run depends on it: streamed ones depend on the number of workers."""
    need = _decoded(images, len(images.fold(*recipe.training_folds))) / workers
    return IN_MEMORY if need <= shard_memory else f"streamed by {workers}"


def _decoded(images: Images, rows: int) -> int:
    return rows * images.size**2 * 3


def _check_sizes(rows: dict[str, pd.DataFrame], recipe: Recipe, workers: int) -> None:
    small = [f"{len(frame)} {name} images" for name, frame in rows.items() if len(frame) < workers]
    if small:
        raise UserError(f"{', '.join(small)} for {workers} worker(s): each needs at least one; are all folds filled?")
    check_batch(len(rows["training"]), recipe.data.batch_size, workers)


def _part(name: str, rank: int) -> str:
    return f"{name}-{rank}"


def _part_rows(name: str, rows: pd.DataFrame, sampler: Sampler) -> pd.DataFrame:
    if name == "training":
        return rows.iloc[sampler.bounds]
    return rows.iloc[evaluation_bounds(len(rows), sampler.rank, sampler.workers)]


def make_sampler(recipe: Recipe, rows: int, rank: int = 0, workers: int = 1) -> Sampler:
    """Make the sampler of a worker; `rows` counts the training images over all workers."""
    return Sampler(rows, recipe.data.batch_size, recipe.seed, rank, workers)


def cached_shard(path: str, labels: np.ndarray, rank: int, workers: int) -> Shard:
    """This worker's part of the validation split, from a table of activations; `labels` are of the whole split."""
    bounds = evaluation_bounds(len(labels), rank, workers)
    return Shard(Activations(path, bounds), labels[bounds])


def cached_batches(path: str, labels: np.ndarray, recipe: Recipe, sampler: Sampler) -> Batches:
    """`batches` from a table of activations: the same images in the views that augmentation would have made of them."""
    table, labels_here, share = Activations(path, sampler.bounds), labels[sampler.bounds], sampler.share
    mine = slice(sampler.rank * share, (sampler.rank + 1) * share)

    def epoch_of(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = sampler.order(epoch)
        for index, places in enumerate(order, start=epoch * len(order)):
            uniform = draw(recipe.seed, index, recipe.data.batch_size, DRAWS, stream=0).numpy()
            views = chosen_views(uniform[mine]) if recipe.augmentation.name == "light" else np.zeros(share, int)
            yield table.take(places, views), labels_here[places]

    return lambda epoch: _ahead(epoch_of(epoch))


def _ahead(result: Iterator[Any]) -> Iterator[Any]:
    """The same, each made while the one before is used: reading a large table from disk then costs no time."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, result, None)
        while (one := coming.result()) is not None:
            coming = pool.submit(next, result, None)
            yield one


def collect(name: str, sampler: Sampler, source: Source) -> Shard:
    """This worker's part of a split, decoded, in the order of image_id.

    Ray Data has decoded it, but a node may be gone with its blocks, and no CPU be free to decode them again, for the
    workers hold them all. That wait would have no end: then this process decodes its part itself.
    """
    part = None if source.alone else _decoded_before(name, sampler)
    if part is not None:
        return part
    source.alone = True
    rows = _part_rows(name, source.rows[name], sampler).sort_values("image_id")
    return Shard(read_pixels(source.images, rows), rows["label"].to_numpy(np.int32))


def _decoded_before(name: str, sampler: Sampler) -> Shard | None:
    """The part as Ray Data has decoded it; None where no CPU has been free for a while to decode what is gone."""
    shard = ray.train.get_dataset_shard(_part(name, sampler.rank))
    results: queue.Queue[Shard | Exception] = queue.Queue()

    def join() -> None:
        try:
            results.put(_joined(shard))
        except Exception as error:  # raised again where it is waited for
            results.put(error)

    threading.Thread(target=join, daemon=True).start()  # no pool: its threads are joined at the end of the process
    blocked = 0.0
    while blocked < STALLED:
        try:
            result = results.get(timeout=_LOOK)
        except queue.Empty:
            blocked = blocked + _LOOK if free_cpus() < decoding_cpus() else 0.0
            continue
        if isinstance(result, Exception):
            raise result
        return result
    return None


def decoded(images: Images, rows: pd.DataFrame) -> Shard:
    """These rows of IMAGES, decoded by Ray Data, in the order of image_id."""
    with watched("decoding", f"{len(rows):,} images, by tasks of {decoding_cpus():g} CPU each"):
        return _joined(read(images, rows))


def _joined(result: Any) -> Shard:
    blocks = list(result.iter_batches(batch_size=None))
    order = np.argsort(np.concatenate([block["image_id"] for block in blocks]).astype(str))
    pixels = np.concatenate([block["pixels"] for block in blocks])[order]
    return Shard(pixels, np.concatenate([block["label"] for block in blocks])[order].astype(np.int32))


def batches(sampler: Sampler, resident: bool, source: Source) -> Batches:
    """This worker's share of each step, by epoch: uint8 images and int32 labels."""
    return kept_batches(collect("training", sampler, source), sampler) if resident else _streamed(sampler)


def kept_batches(shard: Shard, sampler: Sampler) -> Batches:
    """`batches` of a shard in memory."""

    def epoch_of(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for places in sampler.order(epoch):
            yield shard.inputs[places], shard.labels[places]

    return epoch_of


def _streamed(sampler: Sampler) -> Batches:
    """Shuffled within a buffer only: the order is Ray Data's, the steps are the sampler's."""
    shard, share = ray.train.get_dataset_shard(_part("training", sampler.rank)), sampler.share

    def epoch_of(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        result = shard.iter_batches(
            batch_size=share,
            drop_last=True,
            prefetch_batches=4,
            local_shuffle_buffer_size=16 * share,
            local_shuffle_seed=(sampler.seed * 1_000 + epoch) * 1_000 + sampler.rank,
        )
        for batch in itertools.islice(result, sampler.steps):  # as many on every worker
            yield batch["pixels"], batch["label"].astype(np.int32)

    return epoch_of
