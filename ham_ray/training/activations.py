"""ACTIVATIONS: what a network's frozen prefix gives for each image and view, computed once, read memory-mapped.

A table is of all images, whatever the folds: a folder named by all that its content depends on. Its blocks of rows are
computed by Ray's actors once a split needs one of their rows, each written aside and renamed; `table.json` with their
checksums comes last. An interrupted build goes on where it was, and blocks whose checksums do not match are computed
again.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable
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
MAPPED = 16 << 20  # bytes taken after which pages are given back; with each come some of its neighbours
CODE = 2  # counted up with each change of what computes them (views, preprocessing, folding) that gives other numbers
_ABOUT = "table.json"
_BUILDING = threading.Lock()
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("float16"), "float32": np.dtype("float32")}


@dataclass(frozen=True)
class Cached:
    """The images of a split in a table: its folder, and their rows in it, int32[n]."""

    path: str
    rows: np.ndarray


class Activations:
    """The images of a split, or a stretch of them: half precision on disk, the prefix's own dtype when read."""

    def __init__(self, cached: Cached, stretch: slice = slice(None)) -> None:
        about = json.loads(Path(cached.path, _ABOUT).read_bytes())
        self._dtype, stored = (_DTYPES[about[name]] for name in ("dtype", "stored"))
        self._rows = cached.rows[stretch]
        numbers = np.unique(self._rows // BLOCK).tolist()
        self._mapped = [np.load(Path(cached.path, _name(number)), mmap_mode="r") for number in numbers]
        self._blocks = {number: block.view(stored) for number, block in zip(numbers, self._mapped, strict=True)}
        self._taken = 0  # bytes since pages were last given back

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def bytes_each(self) -> int:
        """Bytes of one view of an image, as it is taken."""
        return int(np.prod(next(iter(self._blocks.values())).shape[2:])) * self._dtype.itemsize

    def __getitem__(self, stretch: slice | np.ndarray) -> np.ndarray:
        """Read the activations of the images as they are: view 0."""
        places = np.arange(len(self))[stretch]
        return self.take(places, np.zeros(len(places), int))

    def take(self, places: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Read the activations [n, …] of the images at `places` int[n], each in its view of `views` int[n]."""
        pairs = zip(self._rows[places].tolist(), views.tolist(), strict=True)
        result = np.stack([self._blocks[row // BLOCK][row % BLOCK, chosen] for row, chosen in pairs])
        self._taken += result.nbytes
        if self._taken > MAPPED:
            self._give_back()
        return result.astype(self._dtype, copy=False)

    def _give_back(self) -> None:
        """Unmap the pages read so far; the system keeps them as long as it has memory for them."""
        self._taken = 0
        for block in self._mapped:
            block._mmap.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class _Table:
    """A table as far as a split needs it.

    path: its folder; images: how many it is of; views: of each of them; rows: that are needed, int32[n].
    """

    path: Path
    images: int
    views: int
    rows: np.ndarray

    @property
    def blocks(self) -> list[str]:
        """The names of the files that are needed."""
        return [_name(number) for number in np.unique(self.rows // BLOCK).tolist()]

    def stretch(self, block: str) -> slice:
        """Return the rows of a block."""
        start = int(block[6:11]) * BLOCK
        return slice(start, min(start + BLOCK, self.images))

    def passes(self, blocks: Iterable[str]) -> int:
        """Count the forward passes of these blocks: their images in all views."""
        stretches = map(self.stretch, blocks)
        return self.views * sum(stretch.stop - stretch.start for stretch in stretches)

    def checksums(self) -> dict[str, int]:
        """Read those of the blocks that have been computed so far."""
        about = self.path / _ABOUT
        return json.loads(about.read_bytes())["checksums"] if about.exists() else {}


def _name(block: int) -> str:
    return f"block-{block:05d}.npy"


def folder(out: str) -> str:
    """Return the folder of the tables that all runs and searches below `out` share."""
    return storage.join(storage.absolute(out), "activations")


def prepare(
    images: Images, rows: dict[str, pd.DataFrame], recipe: Recipe, weights: Weights, folder: str, budget: float
) -> dict[str, Cached] | None:
    """Compute what the tables of the training and validation rows still lack; return where the rows are.

    Return None where the plain path, without tables, is taken.

    Args:
        folder: where tables are kept; the same for all runs that are to share them.
        budget: the most bytes that these tables may take.
    """
    result = planned(images, rows, recipe, weights, folder, budget)
    return result.built() if result else None


@dataclass(frozen=True)
class Planned:
    """Tables that fit, before the missing blocks are computed."""

    images: Images
    recipe: Recipe
    weights: Weights
    tables: dict[str, _Table]
    missing: dict[str, list[str]]
    bytes_each: int  # of one view of an image
    dtype: str

    def built(self) -> dict[str, Cached]:
        """Compute the missing blocks, and return where the rows of all splits are."""
        with _BUILDING:  # trainings at once share tables
            lacking: dict[str, list[str]] = {}
            taken: set[Path] = set()  # the same table may serve training and validation
            for name, table in self.tables.items():
                known = table.checksums()
                blocks = [block for block in self.missing[name] if block not in known]
                lacking[name] = [block for block in blocks if table.path / block not in taken]
                taken |= {table.path / block for block in lacking[name]}
            if taken:
                _build(self, lacking)
        return {name: Cached(str(table.path), table.rows) for name, table in self.tables.items()}

    def sizes(self, missing: bool = False) -> dict[Path, int]:
        """Return the bytes of what is needed of each table, or of what is missing of it."""
        blocks = self.missing if missing else {name: table.blocks for name, table in self.tables.items()}
        result: dict[Path, int] = {}
        for name, table in self.tables.items():
            result[table.path] = result.get(table.path, 0) + table.passes(blocks[name]) * self.bytes_each
        return result


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
    missing = {name: _missing(table) for name, table in tables.items()}
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


def _told(tables: dict[str, _Table], missing: dict[str, list[str]], shape: tuple[int, ...]) -> str:
    views = "×".join(map(str, shape)) + f" for each image and view ({tables['training'].views} in training)"
    passes = sum(table.passes(missing[name]) for name, table in tables.items())
    return views + (f"; {passes:,} views computed once now" if passes else "; there already")


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
    """Describe the table that these rows are in, its folder named by all that its content depends on.

    Random weights come from the seed.
    """
    depends_on = {
        "code": CODE,
        "architecture": registry.architecture(recipe.family).name,
        "weights": weights.sha256 or f"random from seed {recipe.seed}",
        "unfreeze_depth": recipe.model.unfreeze_depth,
        "precision": recipe.model.precision,
        "images": images.fingerprint,
        "geometry": images.card.get("geometry"),
        "size": images.size,
        "ids": hashlib.sha256("\0".join(images.rows["image_id"]).encode()).hexdigest(),
        "views": views,
        "shape": shape,
        "block": BLOCK,
    }
    return _Table(Path(folder, digest(depends_on)), len(images.rows), views, rows.index.to_numpy(np.int32))


def _missing(table: _Table) -> list[str]:
    """List the needed blocks that are to be computed; delete damaged ones."""
    known = table.checksums()
    damaged = [block for block in table.blocks if block in known and _checksum(table.path / block) != known[block]]
    for block in damaged:
        print(f"activations: {table.path / block} is damaged or gone; computing it again", flush=True)
        (table.path / block).unlink(missing_ok=True)
    if damaged:
        about = json.loads((table.path / _ABOUT).read_bytes())
        sound = {block: checksum for block, checksum in known.items() if block not in damaged}
        storage.write_bytes(table.path / _ABOUT, runs.to_json({**about, "checksums": sound}))
    return [block for block in table.blocks if block not in known or block in damaged]


def _checksum(path: Path) -> int | None:
    """Compute the checksum of a block file; None where the file is damaged or missing."""
    try:
        return zlib.crc32(np.load(path, mmap_mode="r").data)
    except (OSError, ValueError, EOFError):
        return None


def _build(plan: Planned, missing: dict[str, list[str]]) -> None:
    """Compute these blocks by actors, one a node, but for those that an interrupted build left; then list them."""
    done = {
        name: {block: _checksum(plan.tables[name].path / block) for block in blocks} for name, blocks in missing.items()
    }
    ahead = [
        _Block(name, table.path / block, plan.images.stored(plan.images.rows.iloc[table.stretch(block)]), table.views)
        for name, table in plan.tables.items()
        for block, checksum in done[name].items()
        if checksum is None
    ]
    total = sum(plan.tables[name].passes(blocks) for name, blocks in missing.items())
    made = total - sum(block.cost for block in ahead)
    stored = "bfloat16" if plan.dtype == "bfloat16" else "float16"
    with step("activations", f"{total:,} views of images"), progress("activations", "views") as advance:
        builder = partial(_Builder, plan.recipe, plan.images.size, plan.weights, stored)
        for block, checksum in pool.mapped(builder, ahead, "activations"):
            done[block.table][block.path.name] = checksum
            made += block.cost
            advance(made, total)
    for name, table in plan.tables.items():
        about = {"rows": table.images, "views": table.views, "dtype": plan.dtype, "stored": stored}
        listed = dict(sorted({**table.checksums(), **done[name]}.items()))
        storage.write_bytes(table.path / _ABOUT, runs.to_json({**about, "checksums": listed}))


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
