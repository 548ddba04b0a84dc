"""From IMAGES to a worker's batches: splits by fold, parts by worker, kept in memory or streamed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import ray.train
from ray.data import Dataset

from ham_ray.data.images import Images, read
from ham_ray.data.shards import check_batch, epoch_order, evaluation_shard, training_shard
from ham_ray.errors import UserError
from ham_ray.recipe import Recipe

IN_MEMORY = "in memory"
Batches = Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class Splits:
    """The rows of each split, and for each worker a dataset of its part of them."""

    rows: dict[str, pd.DataFrame]
    datasets: dict[str, Dataset]
    resident: bool


@dataclass(frozen=True)
class Part:
    """Images in memory: uint8[n, size, size, 3] and labels int32[n]."""

    pixels: np.ndarray
    labels: np.ndarray


def split_rows(images: Images, recipe: Recipe) -> dict[str, pd.DataFrame]:
    """The rows of IMAGES in each split."""
    return {
        "training": images.fold(*recipe.training_folds),
        "validation": images.fold(recipe.validation_fold),
        "test": images.fold(recipe.test_fold),
    }


def split(images: Images, recipe: Recipe, workers: int, shard_memory: float) -> Splits:
    """Cut IMAGES into splits by fold and into parts by worker.

    A training part that fits `shard_memory` (bytes) is decoded once and kept; a larger one is decoded anew each epoch.
    """
    rows = split_rows(images, recipe)
    _check_sizes(rows, recipe, workers)
    need, held_out = (_decoded(images, len(rows[name])) / workers for name in ("training", "validation"))
    resident = batching(images, recipe, workers, shard_memory) == IN_MEMORY
    print(
        f"training part of a worker: {need / 2**20:.0f} MiB decoded, "
        + ("kept in memory" if resident else "streamed every epoch")
        + f" (--shard-memory {shard_memory / 2**20:.0f} MiB); with {held_out / 2**20:.0f} MiB of validation beside"
    )
    parts = {
        _part(name, rank): _part_rows(name, frame, rank, workers, recipe.batch_size)
        for name, frame in rows.items()
        for rank in range(workers)
    }
    datasets = {name: read(images, part) for name, part in parts.items()}
    if resident:  # decoded before the workers take their CPUs: nobody waits for anybody
        datasets = {name: dataset.materialize() for name, dataset in datasets.items()}
    return Splits(rows, datasets, resident)


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
    check_batch(len(rows["training"]), recipe.batch_size, workers)


def _part(name: str, rank: int) -> str:
    return f"{name}-{rank}"


def _part_rows(name: str, rows: pd.DataFrame, rank: int, workers: int, batch_size: int) -> pd.DataFrame:
    if name == "training":
        return training_shard(rows, rank, workers, batch_size)
    return evaluation_shard(rows, rank, workers)


def collect(name: str, rank: int) -> Part:
    """This worker's part of a split, decoded, in the order of image_id."""
    shard = ray.train.get_dataset_shard(_part(name, rank))
    blocks = list(shard.iter_batches(batch_size=None))
    order = np.argsort(np.concatenate([block["image_id"] for block in blocks]).astype(str))
    pixels = np.concatenate([block["pixels"] for block in blocks])[order]
    return Part(pixels, np.concatenate([block["label"] for block in blocks])[order].astype(np.int32))


def batches(recipe: Recipe, rows: int, resident: bool, rank: int, workers: int) -> Batches:
    """This worker's share of each step, by epoch: uint8 images and int32 labels.

    `rows` counts the training images over all workers.
    """
    return _kept(recipe, rows, rank, workers) if resident else _streamed(recipe, rows, rank, workers)


def _kept(recipe: Recipe, rows: int, rank: int, workers: int) -> Batches:
    part = collect("training", rank)

    def epoch_of(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for places in epoch_order(rows, rank, workers, recipe.batch_size, recipe.seed, epoch):
            yield part.pixels[places], part.labels[places]

    return epoch_of


def _streamed(recipe: Recipe, rows: int, rank: int, workers: int) -> Batches:
    shard, share = ray.train.get_dataset_shard(_part("training", rank)), recipe.batch_size // workers

    def epoch_of(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        found = shard.iter_batches(
            batch_size=share,
            drop_last=True,
            prefetch_batches=4,
            local_shuffle_buffer_size=16 * share,
            local_shuffle_seed=(recipe.seed * 1_000 + epoch) * 1_000 + rank,
        )
        for batch in itertools.islice(found, rows // recipe.batch_size):  # as many on every worker
            yield batch["pixels"], batch["label"].astype(np.int32)

    return epoch_of
