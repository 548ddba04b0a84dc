"""Ray Data: stored rows to pixels, by tasks that are each sent their own rows and no more.

A shard that fits in memory is decoded once; a larger one is streamed in the order of its rows. Where no CPU comes free
for the tasks, because a node is gone and the workers hold the rest, a worker decodes its rows itself.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import ray.data
from ray.data import Dataset, ExecutionResources

from ham_ray.cluster import roomiest_cpus, task_cpus
from ham_ray.data.stored import StoredRows, decode

STALLED = 30.0  # seconds without a free CPU after which a worker waits no longer for decoded images
PIECE = 128  # rows decoded at once
_LOOK = 2.0  # seconds between two looks
_AHEAD = 4  # pieces decoded before they are used
_BLOCK_BYTES = 8 << 20  # of encoded or decoded images between two tasks
_STREAM_BYTES = 512 << 20  # of the object store that one stream may fill
_Piece = TypeVar("_Piece")


def dataset(rows: StoredRows, cpus: float) -> Dataset:
    """Make a lazy dataset of `row`, int64 from 0 in the order of `rows`, and `pixels`, uint8[size, size, 3].

    Its tasks ask for so many `cpus`.
    """
    items = [{"first": start, "rows": rows[start : start + PIECE]} for start in range(0, len(rows), PIECE)]
    table = ray.data.from_items(items, override_num_blocks=len(items))
    return table.map_batches(_decode_piece, batch_size=1, num_cpus=cpus)  # type: ignore[arg-type]


class Decoder:
    """Decodes the images of one process. `alone` is set once it had to do so without Ray Data: it stays so."""

    def __init__(self, alone: bool = False) -> None:
        self.alone = alone

    def whole(self, rows: StoredRows, cpus: float, blocks: Callable[[], Iterable[Any]]) -> np.ndarray:
        """Fill an array with the pixels of all rows, uint8[n, size, size, 3], from blocks of `dataset` in any order.

        `cpus` are what its tasks ask for.
        """
        result = np.empty((len(rows), rows.size, rows.size, 3), np.uint8)
        missing = np.ones(len(rows), bool)
        for block in self._watched(blocks, cpus):
            result[block["row"]] = block["pixels"]
            missing[block["row"]] = False
        left = np.flatnonzero(missing)
        for start in range(0, len(left), PIECE):
            chosen = left[start : start + PIECE]
            result[chosen] = rows[chosen].pixels()
        return result

    def stream(self, rows: StoredRows, window: int) -> Iterator[np.ndarray]:
        """Yield the pixels of the rows in their order, some at a time; `window` rows are read together."""
        done, cpus = 0, 0.0 if self.alone else task_cpus()
        for pixels in self._watched(lambda: _streamed(rows, window, cpus), cpus):
            done += len(pixels)
            yield pixels
        for piece in rows[done:].stretches(PIECE):
            yield piece.pixels()

    def _watched(self, pieces: Callable[[], Iterable[_Piece]], cpus: float) -> Iterator[_Piece]:
        """Yield what a thread makes ahead, up to the end, or until no node has had `cpus` for it for too long."""
        if self.alone:
            return
        made: queue.Queue[_Piece | Exception | None] = queue.Queue(_AHEAD)
        left = threading.Event()  # no pool: its threads are joined at the end of the process
        threading.Thread(target=_make, args=(pieces, made, left), daemon=True).start()
        try:
            while (piece := self._next(made, cpus)) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            left.set()

    def _next(self, made: queue.Queue[_Piece | Exception | None], cpus: float) -> _Piece | Exception | None:
        blocked = 0.0
        while blocked < STALLED:
            try:
                return made.get(timeout=_LOOK)
            except queue.Empty:
                blocked = blocked + _LOOK if roomiest_cpus() < cpus else 0.0
        self.alone = True
        return None


def _make(
    pieces: Callable[[], Iterable[_Piece]], made: queue.Queue[_Piece | Exception | None], left: threading.Event
) -> None:
    """Put the pieces, then None; or what went wrong. Ends early where nobody takes them any more."""
    try:
        for piece in pieces():
            if not _put(made, piece, left):
                return
        _put(made, None, left)
    except Exception as error:  # raised again where it is waited for
        _put(made, error, left)


def _put(made: queue.Queue, piece: object, left: threading.Event) -> bool:
    while not left.is_set():
        try:
            made.put(piece, timeout=0.5)
            return True
        except queue.Full:
            continue
    return False


def _streamed(rows: StoredRows, window: int, cpus: float) -> Iterator[np.ndarray]:
    """Read window after window by tasks that wait for the disk alone, decode by others, and keep the order."""
    table = ray.data.from_items([{"rows": stretch} for stretch in rows.stretches(window)])
    encoded = table.map_batches(_encoded_pieces, batch_size=1, num_cpus=0, concurrency=2)  # type: ignore[arg-type]
    decoded = encoded.map_batches(_decode_encoded, batch_size=None, num_cpus=cpus)  # type: ignore[arg-type]
    decoded.context.target_max_block_size = _BLOCK_BYTES
    decoded.context.execution_options.preserve_order = True
    decoded.context.execution_options.resource_limits = ExecutionResources(object_store_memory=_STREAM_BYTES)
    for block in decoded.iter_batches(batch_size=None, prefetch_batches=0):
        yield np.asarray(block["pixels"])


def _encoded_pieces(batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[bytes]]]:
    for rows in batch["rows"]:
        encoded = rows.encoded()
        for start in range(0, len(encoded), PIECE):
            yield {"image": encoded[start : start + PIECE]}


def _decode_encoded(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"pixels": np.stack([decode(encoded) for encoded in batch["image"]])}


def _decode_piece(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    (rows,), (first,) = batch["rows"], batch["first"]
    return {"row": np.arange(first, first + len(rows)), "pixels": rows.pixels()}
