"""Work over actors, one a node (one a GPU where there are any), which come and go with the nodes.

Ray Data's actor pools are fixed to the nodes they start with and restart a lost actor wherever there is room, on the
CPUs that their own upstream tasks need too: then nothing moves for ever. Here an actor stays on its node and does all
the work on a chunk itself, so that no actor ever waits for another task; a lost node's chunks go to the others.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ham_ray.cluster import Slot, alive_nodes, slots
from ham_ray.errors import UserError, cause, in_words
from ham_ray.waiting import watched

RESTARTS = 3  # of the actors that work on a chunk, or of those in one slot; more is no accident
_LOOK = 2.0  # seconds between two looks at the nodes

Chunk = Any  # hashable, and small: all of the work that one call is sent
Result = Any


@ray.remote(max_restarts=0)
class _Actor:
    """An actor that does the work; made ready by `start`, whose errors reach the job unlike a constructor's."""

    def start(self, make: Callable[[], Callable[[Chunk], Result]]) -> None:
        self.work = make()

    def run(self, chunk: Chunk) -> Result:
        return self.work(chunk)


class _Call(NamedTuple):
    """A call in flight: in which slot, on which chunk (None while the actor starts)."""

    slot: Slot
    chunk: Chunk | None


def mapped(
    make: Callable[[], Callable[[Chunk], Result]], chunks: Sequence[Chunk], what: str
) -> Iterator[tuple[Chunk, Result]]:
    """Run the work on chunks in actors; yield each chunk with its result, in the order in which they end.

    Args:
        make: called once in each actor; what it returns is called with a chunk, in several threads at once.
        what: the work, in the lines that say what it waits for.

    Raises:
        UserError: there is no CPU in the cluster; or actors die again and again, with the reason.
        Exception: what the work itself raised.
    """
    if not chunks:
        return
    pool = _Pool(make, chunks)
    with watched(what, f"one of {len(chunks)} chunks, by {described(pool.slots())}") as heard:
        try:
            while pool.left:
                for chunk, result in pool.step():
                    heard()
                    yield chunk, result
        finally:
            pool.close()


def described(result: list[Slot]) -> str:
    """Describe actors in these slots in words."""
    each = ", ".join(f"{slot.node} ({slot.cpus:g} CPU{', 1 GPU' if slot.gpus else ''})" for slot in result)
    return f"{len(result)} actor(s) on {each}"


class _Pool:
    """The actors, the calls in flight and the chunks that nobody works on yet."""

    def __init__(self, make: Callable[[], Callable[[Chunk], Result]], chunks: Sequence[Chunk]) -> None:
        self.make, self.todo, self.left = ray.put(make), deque(chunks), len(chunks)
        self.actors: dict[Slot, Any] = {}
        self.calls: dict[Any, _Call] = {}  # by object reference
        self.deaths: Counter[Any] = Counter()  # by chunk, or by slot while the actor starts
        if not self.slots():
            nodes = alive_nodes()
            raise UserError(
                f"no CPU to work with: {len(nodes)} node(s) with {sum(node.cpus for node in nodes):g} CPUs; start Ray "
                "with --num-cpus of at least 1 on one of them"
            )

    def slots(self) -> list[Slot]:
        """List the slots where actors may be now."""
        return slots(alive_nodes())

    def step(self) -> Iterator[tuple[Chunk, Result]]:
        """Start actors where there are none, hand out chunks, and wait a moment for results."""
        for slot in self.slots():
            if slot not in self.actors:
                self._start(slot)
        self._hand_out()
        if not self.calls:  # no node is left: wait for one
            time.sleep(_LOOK)
            return
        done, _ = ray.wait([*self.calls], timeout=_LOOK)
        for ref in done:
            call = self.calls.pop(ref)
            try:
                result = ray.get(ref)
            except RayTaskError as error:
                raise cause(error) from None
            except RayError as error:
                self._bury(call, error)
                continue
            if call.chunk is not None:
                self.left -= 1
                yield call.chunk, result

    def close(self) -> None:
        """End all actors."""
        for actor in self.actors.values():
            ray.kill(actor)
        self.actors.clear()

    def _start(self, slot: Slot) -> None:
        here = NodeAffinitySchedulingStrategy(slot.node.id, soft=False)
        asked = {"num_cpus": slot.cpus, "num_gpus": slot.gpus, "max_concurrency": slot.in_flight}
        self.actors[slot] = _Actor.options(**asked, scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        self.calls[self.actors[slot].start.remote(self.make)] = _Call(slot, None)

    def _hand_out(self) -> None:
        """Give each started actor its fill, evenly: nobody gets a second chunk while another has none."""
        busy = Counter(call.slot for call in self.calls.values())
        starting = {call.slot for call in self.calls.values() if call.chunk is None}
        for most in range(1, 1 + max((slot.in_flight for slot in self.actors), default=0)):
            for slot in self.actors.keys() - starting:
                if self.todo and busy[slot] < min(most, slot.in_flight):
                    chunk = self.todo.popleft()
                    self.calls[self.actors[slot].run.remote(chunk)] = _Call(slot, chunk)
                    busy[slot] += 1

    def _bury(self, dead: _Call, error: RayError) -> None:
        """Take back the chunks of a dead actor; its death counts against them, unless its whole node is gone."""
        actor = self.actors.pop(dead.slot, None)
        if actor is not None:
            ray.kill(actor)  # one that is unreachable may still be alive
        lost = [dead, *(call for call in self.calls.values() if call.slot == dead.slot)]
        self.calls = {ref: call for ref, call in self.calls.items() if call.slot != dead.slot}
        chunks = [call.chunk for call in lost if call.chunk is not None]
        self.todo.extendleft(chunks)
        if dead.slot not in self.slots():
            return
        self.deaths.update(chunks or [dead.slot])
        if max(self.deaths[one] for one in chunks or [dead.slot]) > RESTARTS:
            raise UserError(f"an actor on {dead.slot.node} died {RESTARTS + 1} times: {in_words(error)}") from None
