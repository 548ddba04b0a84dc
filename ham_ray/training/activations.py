"""ACTIVATIONS: what a network's frozen prefix gives for each image and view, computed once, read memory-mapped.

A table is a folder named by all that its content depends on. Blocks of rows are computed by Ray's actors, each written
aside and renamed; `table.json` with their checksums comes last. An interrupted build goes on where it was, and blocks
whose checksums do not match are computed again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pandas as pd
import tensorflow as tf

from ham_ray import pool, runs, storage
from ham_ray.console import progress
from ham_ray.data.images import Images
from ham_ray.data.stored import StoredRows
from ham_ray.models import registry
from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM, Weights
from ham_ray.progress import step
from ham_ray.recipe import VIEWS, Recipe, digest
from ham_ray.training.augment import view

BLOCK = 128  # images a file
CODE = 2  # counted up with each change of what computes them (views, preprocessing, folding) that gives other numbers
_ABOUT = "table.json"
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("float16"), "float32": np.dtype("float32")}


class Activations:
    """An opened table, or a stretch `rows` of it: half precision on disk, the prefix's own dtype when read."""

    def __init__(self, path: str, rows: slice = slice(None)) -> None:
        about = json.loads(Path(path, _ABOUT).read_bytes())
        self._dtype, stored = (_DTYPES[about[name]] for name in ("dtype", "stored"))
        self._blocks = [np.load(Path(path, name), mmap_mode="r").view(stored) for name in about["checksums"]]
        self._rows = range(about["rows"])[rows]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def bytes_each(self) -> int:
        """Bytes of one view of an image, as it is taken."""
        return int(np.prod(self._blocks[0].shape[2:])) * self._dtype.itemsize

    def __getitem__(self, stretch: slice | np.ndarray) -> np.ndarray:
        """Read the activations of the images as they are: view 0."""
        places = np.arange(len(self))[stretch]
        return self.take(places, np.zeros(len(places), int))

    def take(self, places: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Read the activations [n, …] of the images at `places` int[n], each in its view of `views` int[n]."""
        pairs = zip((places + self._rows.start).tolist(), views.tolist(), strict=True)
        result = [self._blocks[path // BLOCK][path % BLOCK, chosen] for path, chosen in pairs]
        return np.stack(result).astype(self._dtype, copy=False)


@dataclass(frozen=True)
class _Table:
    """A table to be built: its folder, the rows of IMAGES, and how many views of each image."""

    path: Path
    rows: pd.DataFrame
    views: int

    @property
    def blocks(self) -> list[str]:
        """The names of the block files."""
        return [f"block-{number:05d}.npy" for number in range(-(-len(self.rows) // BLOCK))]

    def stretch(self, block: str) -> pd.DataFrame:
        """Return the rows of a block."""
        number = int(block[6:11])
        return self.rows.iloc[number * BLOCK : (number + 1) * BLOCK]


def folder(out: str) -> str:
    """Return the folder of the tables that all runs and searches below `out` share."""
    return storage.join(storage.absolute(out), "activations")


def prepare(
    images: Images, rows: dict[str, pd.DataFrame], recipe: Recipe, weights: Weights, folder: str, budget: float
) -> dict[str, str] | None:
    """Build the tables of the training and validation rows that do not exist yet; return the folder of each.

    Return None where the plain path, without tables, is taken.

    Args:
        folder: where tables are kept; the same for all runs that are to share them.
        budget: the most bytes that these tables may take.
    """
    result = planned(images, rows, recipe, weights, folder, budget)
    return result.built() if result else None


@dataclass(frozen=True)
class Planned:
    """Tables that fit, before the missing ones are built."""

    images: Images
    recipe: Recipe
    weights: Weights
    tables: dict[str, _Table]
    missing: dict[str, _Table]
    bytes_each: int  # of one view of an image
    dtype: str

    def built(self) -> dict[str, str]:
        """Build the missing tables, and return the folders of all."""
        if self.missing:
            _build(self.missing, self.images, self.recipe, self.weights, self.dtype)
        return {name: str(table.path) for name, table in self.tables.items()}

    def sizes(self, missing: bool = False) -> dict[Path, int]:
        """Return the bytes of each table, or of the missing ones alone."""
        chosen = self.missing if missing else self.tables
        return {table.path: len(table.rows) * table.views * self.bytes_each for table in chosen.values()}


def planned(
    images: Images,
    rows: dict[str, pd.DataFrame],
    recipe: Recipe,
    weights: Weights,
    folder: str,
    budget: float,
    promised: int = 0,
) -> Planned | None:
    """Plan what `prepare` builds; None, with the reason printed, where the plain path is to be taken.

    `promised` are bytes of the disk that other plans will take.
    """
    if reason := _unfit(recipe, folder):
        print(f"activations: computed anew each step, because {reason}", flush=True)
        return None
    shape, dtype = _output(recipe, images.size)
    views = {"training": VIEWS[recipe.augmentation.name], "validation": 1}
    tables = {
        name: _table(images, rows[name], count, recipe, weights, folder, shape)
        for name, count in views.items()
        if name in rows
    }
    missing = {name: table for name, table in tables.items() if not _sound(table)}
    result = Planned(images, recipe, weights, tables, missing, int(np.prod(shape)) * 2, dtype)
    whole, lacking = sum(result.sizes().values()), sum(result.sizes(missing=True).values())
    if reason := _too_large(whole, lacking, folder, budget, promised):
        print(f"activations: computed anew each step, because {reason}", flush=True)
        return None
    print(f"activations: {whole / 2**30:.2f} GiB in {folder}, " + _told(tables, missing, shape), flush=True)
    return result


def _unfit(recipe: Recipe, folder: str) -> str | None:
    architecture = registry.architecture(recipe.family)
    if not architecture.pretrained:
        return f"{recipe.family} has no frozen part"
    if recipe.model.unfreeze_depth > architecture.deepest_cached:
        return f"at unfreeze depth {recipe.model.unfreeze_depth} they are larger than they are worth"
    if recipe.augmentation.name not in VIEWS:
        return f"augmentation {recipe.augmentation.name!r} never gives the same image twice"
    if storage.is_remote(folder):
        return f"they are memory-mapped, which {folder} cannot be; give a local or shared folder"
    return None


def _too_large(whole: int, missing: int, folder: str, budget: float, promised: int) -> str | None:
    if whole > budget:
        return f"they need {whole / 2**30:.1f} GiB, more than --activations {budget / 2**30:g} (GiB)"
    Path(folder).mkdir(parents=True, exist_ok=True)
    free = max(0, shutil.disk_usage(folder).free - promised)
    if missing > 0.9 * free:
        return f"they need {missing / 2**30:.1f} GiB more and {folder} has {free / 2**30:.1f} GiB free for them"
    return None


def _told(tables: dict[str, _Table], missing: dict[str, _Table], shape: tuple[int, ...]) -> str:
    views = "×".join(map(str, shape)) + f" for each image and view ({tables['training'].views} in training)"
    return views + ("; computed once now" if missing else "; there already")


@cache
def _output(recipe: Recipe, size: int) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of what the prefix gives, from a network with random weights."""
    prefix = build(recipe, size, RANDOM, classes=1).prefix
    return tuple(prefix.output.shape[1:]), str(prefix.output.dtype)


def _table(
    images: Images,
    rows: pd.DataFrame,
    views: int,
    recipe: Recipe,
    weights: Weights,
    folder: str,
    shape: tuple[int, ...],
) -> _Table:
    """Describe the table, its folder named by all that its content depends on. Random weights come from the seed."""
    depends_on = {
        "code": CODE,
        "architecture": registry.architecture(recipe.family).name,
        "weights": weights.sha256 or f"random from seed {recipe.seed}",
        "unfreeze_depth": recipe.model.unfreeze_depth,
        "precision": recipe.model.precision,
        "images": images.fingerprint,
        "geometry": images.card.get("geometry"),
        "size": images.size,
        "ids": hashlib.sha256("\0".join(rows["image_id"]).encode()).hexdigest(),
        "views": views,
        "shape": shape,
        "block": BLOCK,
    }
    return _Table(Path(folder, digest(depends_on)), rows, views)


def _sound(table: _Table) -> bool:
    """Say whether the table is complete and every block has its checksum; delete damaged blocks."""
    if not (table.path / _ABOUT).exists():
        return False
    checksums = json.loads((table.path / _ABOUT).read_bytes())["checksums"]
    damaged = [name for name, expected in checksums.items() if _checksum(table.path / name) != expected]
    for name in damaged:
        print(f"activations: {table.path / name} is damaged or gone; computing it again", flush=True)
        (table.path / name).unlink(missing_ok=True)
    if damaged:
        (table.path / _ABOUT).unlink()
    return not damaged


def _checksum(path: Path) -> int | None:
    """Compute the checksum of a block file; None where the file is damaged or missing."""
    try:
        return zlib.crc32(np.load(path, mmap_mode="r").data)
    except (OSError, ValueError, EOFError):
        return None


def _build(tables: dict[str, _Table], images: Images, recipe: Recipe, weights: Weights, dtype: str) -> None:
    """Compute the missing blocks of all tables by actors, one a node, then write each table's list of blocks."""
    done = {name: {block: _checksum(table.path / block) for block in table.blocks} for name, table in tables.items()}
    stored = "bfloat16" if dtype == "bfloat16" else "float16"
    missing = [
        _Block(name, table.path / block, images.stored(table.stretch(block)), table.views)
        for name, table in tables.items()
        for block, checksum in done[name].items()
        if checksum is None
    ]
    total = sum(len(table.rows) * table.views for table in tables.values())
    made = total - sum(block.cost for block in missing)
    count = f"{sum(len(table.rows) for table in tables.values()):,} images"
    with step("activations", f"{total:,} views of {count}"), progress("activations", "views") as advance:
        builder = partial(_Builder, recipe, images.size, weights, stored)
        for block, checksum in pool.mapped(builder, missing, "activations"):
            done[block.table][block.path.name] = checksum
            made += block.cost
            advance(made, total)
    for name, table in tables.items():
        about = {"rows": len(table.rows), "views": table.views, "dtype": dtype, "stored": stored}
        storage.write_bytes(table.path / _ABOUT, runs.to_json({**about, "checksums": done[name]}))


@dataclass(frozen=True, eq=False)
class _Block:
    """A file to be computed: the rows it is of, and in how many views each."""

    table: str
    path: Path
    rows: StoredRows
    views: int

    @property
    def cost(self) -> int:
        """Forward passes: its images in all views."""
        return len(self.rows) * self.views


class _Builder:
    """Computes and writes blocks; one an actor, the network loaded once. Its threads read, one at a time computes."""

    def __init__(self, recipe: Recipe, size: int, weights: Weights, stored: str) -> None:
        self.computing = threading.Lock()
        prefix = build(recipe, size, weights, classes=1).prefix
        self.forward: Callable[[np.ndarray], tf.Tensor] = tf.function(
            lambda pixels: tf.cast(prefix(pixels, training=False), stored), autograph=False
        )

    def __call__(self, block: _Block) -> int:
        """Compute and write a block; return its checksum."""
        pixels = block.rows.pixels()
        with self.computing:
            return self._write(block, pixels)

    def _write(self, block: _Block, pixels: np.ndarray) -> int:
        padding = [(0, BLOCK - len(pixels)), (0, 0), (0, 0), (0, 0)]
        result = [self.forward(np.pad(view(pixels, i), padding)).numpy()[: len(pixels)] for i in range(block.views)]
        content = np.stack(result, axis=1).view(np.uint16)  # numpy's file format knows no bfloat16
        with storage.writing(block.path) as path:
            np.save(path, content)
        return zlib.crc32(content.data)
