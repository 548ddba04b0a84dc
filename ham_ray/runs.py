"""Run folders: what a run is, from which it can be repeated, and whether the same run goes on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ham_ray import __version__, hardware, storage
from ham_ray.errors import UserError

_PACKAGES = (
    "ray",
    "tensorflow",
    "tensorflow_cpu",
    "keras",
    "optuna",
    "scikit-learn",
    "pandas",
    "numpy",
    "pyarrow",
    "pillow",
)
# What a run folder holds.
IDENTITY, ENVIRONMENT = "recipe.json", "environment.json"
MODEL, HISTORY, PREDICTIONS, METRICS = "model.keras", "history.parquet", "predictions.parquet", "metrics.json"
CALIBRATION, DATA_CARD, SPLIT = "calibration.json", "data_card.json", "split.parquet"
CHECKPOINTS = "checkpoints"  # until it is finished
MANIFEST = "manifest.json"  # beside predictions, their name before
# What a folder of several runs holds.
REPORT, MODEL_CARD, WINNER = "report.html", "model_card.md", "winner.json"
FINALS = "finals"  # of a search: where its best trials are trained again

ANOTHER = "Give another --name, or the same settings"


def claim(uri: str, identity: dict[str, Any], remedy: str = ANOTHER) -> None:
    """Make the folder the run of this identity, or go on with it.

    Raises:
        UserError: the folder is the run of another recipe, other images or other weights; with the differences and the
            `remedy`.
    """
    path = storage.join(uri, IDENTITY)
    if not storage.exists(path):
        storage.write_bytes(path, to_json(identity))
        return
    result = storage.read_object(path)
    changed = [f"{k} was {a!r}, is {b!r}" for k, a, b in differences(result, json.loads(to_json(identity)))]
    if changed:
        raise UserError(f"{uri} is another run: {'; '.join(changed)}. {remedy}")


def remove_leftovers(uri: str) -> None:
    """Delete what Ray Train or Ray Tune was killed in: their folders in the folder at `uri`."""
    for folder in storage.folders(uri):
        if storage.basename(folder).startswith("ray-"):
            storage.remove(folder)


def record_start(uri: str) -> None:
    """Add this start to the run's manifest: a run that goes on may do so with other code or on another machine."""
    starts = storage.read_object(uri).get("starts", [])
    storage.write_bytes(uri, to_json({"starts": [*starts, environment()]}))


def last_start(uri: str) -> str:
    """Return when the run of this manifest was started last, as sortable text; "" where nobody knows."""
    starts = storage.read_object(uri).get("starts")
    return starts[-1]["time"] if starts else ""


def environment() -> dict[str, Any]:
    """Collect versions, machine, command and commit: the part of a manifest that is not the recipe."""
    return {
        "ham_ray": __version__,
        "commit": commit(),
        "code": code_digest(),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": hardware.machine(),
        "packages": {dist.name: dist.version for dist in importlib.metadata.distributions() if dist.name in _PACKAGES},
    }


def commit() -> str:
    """Return the git commit of this code, with `+changes` where files differ from it; `unknown` outside a checkout."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def code_digest() -> str:
    """Compute the sha256 of this package's sources, 12 hex digits.

    It names the code where there is no git, as in a submitted job.
    """
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def to_json(content: Any) -> bytes:
    """Write content as readable JSON with a line end, UTF-8."""
    return (json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n").encode()


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """List each entry that differs, by its path with dots: its value in `old` and in `new`, None where it is absent."""
    result = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            result += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            result.append((prefix + key, a, b))
    return result
