"""Options of a small search for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ham_ray.workflows.tune import Options


def small_search(folder: Path, space: Path, **changes: Any) -> Options:
    """Of three trials, one at a time, without finals, in `folder`."""
    small = Options(
        name="s",
        trials=3,
        space=str(space),
        max_concurrent=1,
        weights=["none"],
        precision="float32",
        finalists=0,
        seeds=1,
        out=str(folder),
    )
    return replace(small, **changes)
