"""Checkpoints: one file an epoch, more in long epochs; whole or absent, the last two kept.

Ray Train keeps its own list of checkpoints in a file that it rewrites in place; a driver killed in that moment could
not go on. Here the newest readable file is the truth, for a restarted worker and for a restarted driver alike.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ham_ray import storage

_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """What the loop needs to go on: named arrays, and the small facts beside them."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder at a path or URI."""

    def __init__(self, uri: str):
        self.uri = uri

    def save(self, epoch: int, checkpoint: Checkpoint, step: int = 0) -> None:
        """Write the state after so many whole epochs and steps, then delete all but the last two checkpoints."""
        within = f".step-{step:08d}" if step else ""  # sorts after the checkpoint that the epoch began with
        facts = np.frombuffer(json.dumps(checkpoint.facts).encode(), np.uint8)
        with storage.writing(storage.join(self.uri, f"epoch-{epoch:05d}{within}.npz")) as path:
            np.savez(path, allow_pickle=False, facts=facts, **checkpoint.arrays)
        for name in self._names()[:-_KEPT]:
            storage.remove(storage.join(self.uri, name))

    @property
    def newest(self) -> str:
        """The name of the newest checkpoint, readable or not; empty where there is none."""
        return max(self._names(), default="")

    def latest(self, say: Callable[[str], None] = print) -> Checkpoint | None:
        """Read the newest readable checkpoint; None where there is none."""
        for name in reversed(self._names()):
            try:
                return self._load(name)
            except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
                say(f"checkpoint {name} is damaged ({error}); going back to the one before")
        return None

    def clear(self) -> None:
        """Delete all checkpoints."""
        storage.remove(self.uri)

    def _names(self) -> list[str]:
        return [name for name in storage.listdir(self.uri) if name.startswith("epoch-") and name.endswith(".npz")]

    def _load(self, name: str) -> Checkpoint:
        with np.load(io.BytesIO(storage.read_bytes(storage.join(self.uri, name)))) as file:
            arrays = {key: file[key] for key in file.files}
        return Checkpoint(arrays, json.loads(arrays.pop("facts").tobytes()))
