"""What a search's process works on alone: trials, the next trial's choice, finals. Here one process has the study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Leases:
    """The leases of a process that shares its study with no other."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, what: str) -> bool:
        """Take a lease. False where somebody has it: another process, or this one already."""
        if what in self._taken:
            return False
        self._taken.add(what)
        return True

    def leave(self, what: str) -> None:
        """Let anybody have it."""
        self._taken.discard(what)

    def holds(self, what: str) -> bool:
        """Whether this process has taken it."""
        return what in self._taken

    def holder(self, what: str) -> str:
        """Who has a lease, in words."""
        return "this process"

    def alone(self) -> bool:
        """Whether no other process may be at work on the study."""
        return True

    @contextmanager
    def holding(self, what: str) -> Iterator[None]:
        """Have a lease while the block runs, which is waited for."""
        yield
