"""Options of a small search for tests."""

from __future__ import annotations

from pathlib import Path

from ham_ray.commands import tuning


def small_search(folder: Path, space: Path, **changes) -> tuning.Options:
    """Of three trials, one at a time, without finals, in `folder`."""
    settings = {
        "data": None,
        "name": "s",
        "trials": 3,
        "space": str(space),
        "max_concurrent": 1,
        "workers_per_trial": 1,
        "cpus_per_worker": None,
        "max_failures": 2,
        "epochs": None,
        "weights": ["none"],
        "precision": "float32",
        "shard_memory": 1.0,
        "activations": 1.0,
        "size": None,
        "storage": None,
        "mixed": False,
        "finalists": 0,
        "finals_data": None,
        "seeds": 1,
        "ensemble": 1,
        "views": 1,
        "refit": False,
        "smoke": False,
        "out": str(folder),
    }
    return tuning.Options(**{**settings, **changes})
