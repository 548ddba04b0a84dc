"""The work between archive and table: chunks of images, each prepared into a part, on threads or on Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ham_ray import hardware
from ham_ray.cluster import check_visible
from ham_ray.data import archives, pictures
from ham_ray.data.archives import Member
from ham_ray.data.images import PICTURES
from ham_ray.errors import cause
from ham_ray.resumable import Parts

CHUNK = 256  # images: a third of a second of work, some 5 MB at 128 px; each part is synced to disk
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("file", pa.string()),
        pa.field("reason", pa.string()),  # null: the image is good
        pa.field("detail", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("pixel_hash", pa.string()),
        pa.field("moments", pa.list_(pa.int64(), 6)),
        pa.field("thumbnail", pa.binary()),
        pa.field("image", pa.binary()),
    ]
)


class Chunk(NamedTuple):
    """Images to prepare: pairs of an image_id and its files; `size` is in pixels."""

    number: int
    images: list[tuple[str, list[Member]]]
    size: int
    geometry: str


Executor = Callable[[Callable[[Chunk], pa.Table], Iterable[Chunk]], Iterator[tuple[int, pa.Table]]]


def process(chunk: Chunk) -> pa.Table:
    """Prepare a chunk's images: a table of `SCHEMA`, one row an image, one a file for conflicting copies."""
    rows = [row for image_id, members in chunk.images for row in _rows(image_id, members, chunk.size, chunk.geometry)]
    return pa.Table.from_pylist(rows, SCHEMA)


def _rows(image_id: str, members: list[Member], size: int, geometry: str) -> list[dict[str, object]]:
    try:
        if len(members) > 1 and not archives.same_content(members):
            others = " and ".join(member.label for member in members)
            return [_bad(image_id, member, "conflicting copies", f"{others} differ") for member in members]
        picture = pictures.prepare(archives.read(members[0]), size, geometry)
    except archives.UnreadableMember as error:
        return [_bad(image_id, members[0], error.reason, str(error))]
    except pictures.BadPicture as error:
        return [_bad(image_id, members[0], error.reason, str(error))]
    return [
        {
            "image_id": image_id,
            "file": members[0].label,
            "width": picture.width,
            "height": picture.height,
            "pixel_hash": picture.pixel_hash,
            "moments": picture.moments.ravel().tolist(),
            "thumbnail": picture.thumbnail,
            "image": picture.encoded,
        }
    ]


def _bad(image_id: str, member: Member, reason: str, detail: str) -> dict[str, object]:
    return {"image_id": image_id, "file": member.label, "reason": reason, "detail": detail}


def over_threads(work: Callable[[Chunk], pa.Table], chunks: Iterable[Chunk]) -> Iterator[tuple[int, pa.Table]]:
    """Run chunks on this machine's cores. Threads are enough: Pillow and hashlib work outside Python's lock."""
    cores = hardware.cores()
    with pictures.strict_headers(), ThreadPoolExecutor(cores) as pool:
        running: dict[Future[pa.Table], int] = {}
        try:
            for chunk in chunks:
                running[pool.submit(work, chunk)] = chunk.number
                # Twice the cores: none idles while results are written, and memory stays bounded.
                while len(running) >= 2 * cores:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(running: dict[Future[pa.Table], int]) -> Iterator[tuple[int, pa.Table]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        yield running.pop(future), future.result()


def over_ray(work: Callable[[Chunk], pa.Table], chunks: Iterable[Chunk]) -> Iterator[tuple[int, pa.Table]]:
    """Run chunks as Ray tasks, two a CPU in flight; every node must see the archive under the same path."""
    import ray

    from ham_ray.waiting import watched  # here, as Ray itself: an ingest on threads needs neither

    task = ray.remote(num_cpus=1)(_within_strict_headers).options(name="ingest")
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[ray.ObjectRef, int] = {}
    with watched("ingest", f"the next {CHUNK} images, by tasks of 1 CPU each") as heard:
        for chunk in chunks:
            running[task.remote(work, chunk)] = chunk.number
            if len(running) >= most:
                yield _first(running)
                heard()
        while running:
            yield _first(running)
            heard()


def _first(running: dict) -> tuple[int, pa.Table]:
    import ray

    (done,), _ = ray.wait(list(running), num_returns=1)
    try:
        return running.pop(done), ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise cause(error) from None


def _within_strict_headers(work: Callable[[Chunk], pa.Table], chunk: Chunk) -> pa.Table:
    with pictures.strict_headers():
        return work(chunk)


def default_executor(archive: str) -> tuple[Executor, str]:
    """Choose Ray where a cluster of several nodes is connected, else this machine's threads; and say why in words.

    Raises:
        UserError: a node does not see the archive.
    """
    ray = sys.modules.get("ray")  # never imported for this: an ingest without Ray stays light
    if ray is not None and ray.is_initialized():
        nodes = sum(node["Alive"] for node in ray.nodes())
        if nodes > 1:
            check_visible(archive, "archive")
            return over_ray, f"Ray tasks on {nodes} nodes"
    return over_threads, f"{hardware.cores()} threads: this machine's cores"


def facts(kept: Parts, chunks: list[Chunk]) -> pa.Table:
    """Join all chunks' parts without their pictures; `part` and `row` say where each row stands.

    Copied: Arrow would keep each part's pictures beside them.
    """
    names, numbers = [name for name in SCHEMA.names if name not in PICTURES], [chunk.number for chunk in chunks]
    tables = []
    for number, part in zip(numbers, kept.read(numbers, names), strict=True):
        places = {"part": np.full(len(part), number, np.int32), "row": np.arange(len(part), dtype=np.int32)}
        for name, values in places.items():
            part = part.append_column(name, pa.array(values))
        tables.append(part.filter(part["image_id"].is_valid()))
    return pa.concat_tables(tables)
