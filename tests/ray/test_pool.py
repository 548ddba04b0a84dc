"""Work over actors: nothing is lost when they die, what they raise comes out as it was, and waiting is said."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from ham_ray import pool, waiting
from ham_ray.cluster import alive_nodes
from ham_ray.errors import UserError

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes do not import tests


class Squares:
    """Numbers to their squares; the process dies at the chunks in `deadly`, at the first or at every attempt."""

    def __init__(self, folder: Path, deadly: int | None, once: bool) -> None:
        self.folder, self.deadly, self.once = folder, deadly, once
        (folder / f"started-{os.getpid()}").touch()

    def __call__(self, number: int) -> int:
        if number == 13:
            raise FileNotFoundError(2, "No such file or directory", "/nowhere/13.jpg")
        if number == self.deadly and not (self.once and (self.folder / "died").exists()):
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number


def squares(folder: Path, chunks: list[int], deadly: int | None = None, once: bool = True) -> dict[int, int]:
    found = list(pool.mapped(partial(Squares, folder, deadly, once), chunks, "squares"))
    assert len(dict(found)) == len(found)  # no chunk came twice
    return dict(found)


def test_a_dead_actor_is_replaced_and_its_chunks_are_done_again(cluster: str, tmp_path: Path):
    chunks = [*range(10)]
    assert squares(tmp_path, chunks, deadly=4) == {number: number**2 for number in chunks}
    assert (tmp_path / "died").exists() and len([*tmp_path.glob("started-*")]) == 2


def test_a_chunk_that_kills_every_actor_ends_the_work_with_the_reason(cluster: str, tmp_path: Path):
    address = alive_nodes()[0].address
    with pytest.raises(UserError, match=rf"an actor on {address} died 4 times: a process died \(.*") as caught:
        squares(tmp_path, [1, 2, 3], deadly=2, once=False)
    assert "\n" not in str(caught.value) and len([*tmp_path.glob("started-*")]) == 1 + pool.RESTARTS


def test_what_the_work_raises_comes_out_as_it_was_raised(cluster: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught:
        squares(tmp_path, [13])
    assert type(caught.value) is FileNotFoundError and caught.value.filename == "/nowhere/13.jpg"


def fails_to_start() -> Callable[[int], int]:
    raise UserError("--model m.keras: damaged")


def test_an_actor_that_cannot_start_says_why(cluster: str):
    with pytest.raises(UserError, match=r"^--model m\.keras: damaged$"):
        list(pool.mapped(fails_to_start, [1], "squares"))


@ray.remote(num_cpus=0)
class Holder:
    """Holds CPUs until it is killed."""

    def holds(self) -> bool:
        return True


def test_who_waits_for_a_cpu_says_so(cluster: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(waiting, "EVERY", 0.2)
    monkeypatch.setattr(waiting, "_LOOK", 0.1)
    cpus = sum(node.cpus for node in alive_nodes())
    holder = Holder.options(num_cpus=cpus).remote()
    assert ray.get(holder.holds.remote())
    said: list[str] = []

    def printed(line: str, **options) -> None:
        said.append(line)
        ray.kill(holder)  # what is waited for comes once it has been said, and not before

    monkeypatch.setattr(waiting, "print", printed, raising=False)
    assert squares(tmp_path, [1, 2]) == {1: 1, 2: 4}
    told = said[0]
    assert f"squares: waiting for one of 2 chunks, by 1 actor(s) on {alive_nodes()[0].address} (1 CPU) since " in told
    assert f"1 node(s) with {cpus:g} CPUs are there, 0 CPUs free" in told
