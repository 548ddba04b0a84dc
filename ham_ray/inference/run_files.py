"""The files that a run or a search leaves beside its model, each read within limits and checked for its form."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from ham_ray import storage
from ham_ray.data.terms import GEOMETRIES
from ham_ray.errors import UserError
from ham_ray.evaluation.calibration import Calibration
from ham_ray.evaluation.predictions import SPLITS

MAX_TABLE = 256 << 20  # bytes


@dataclass(frozen=True)
class Winner:
    """What a search chose: the run folders of each of its trials, views of each image, and the calibration."""

    members: list[list[str]]
    views: int
    calibration: Calibration


def geometry(uri: str) -> str | None:
    """Read from a data card how the images were made square; None where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    result = storage.read_object(uri).get("geometry")
    _require(uri, result is None or result in GEOMETRIES, f"geometry is {result!r}")
    return result


def weights(uri: str) -> str | None:
    """Read from a run's metrics what the backbone started from; None where they do not say it.

    Raises:
        UserError: the file is damaged.
    """
    info = storage.read_object(uri).get("info", {})
    result = info.get("weights") if isinstance(info, dict) else info
    _require(uri, result is None or isinstance(result, str), "info.weights is no text")
    return result


def calibration(uri: str, classes: int) -> Calibration | None:
    """Read the calibration of so many classes in a file; None where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not (result := storage.read_object(uri)):
        return None
    fitted = _calibration(uri, result)
    check_prior(uri, fitted, classes)
    return fitted


def winner(uri: str) -> Winner:
    """Read what a search chose.

    Raises:
        UserError: the file is damaged, or of a version that named no models.
    """
    result = storage.read_object(uri)
    if "members" not in result:
        raise UserError(f"{uri} names no models; run the search's command again, it adds them")
    members = result["members"]
    lists = list(members.values()) if isinstance(members, dict) else []
    names = [name for runs in lists if isinstance(runs, list) for name in runs]
    plain = all(isinstance(name, str) and name not in ("", ".", "..") and "/" not in name for name in names)
    full = lists and all(isinstance(runs, list) and runs for runs in lists)
    _require(uri, bool(full and plain), "members are no names of run folders")
    views: Any = result.get("views")
    _require(uri, isinstance(views, int) and 1 <= views <= 8, f"views is {views!r}, not 1 to 8")
    return Winner(lists, views, _calibration(uri, result.get("calibration")))


def splits(uri: str) -> dict[str, str]:
    """Read the split of each image and of each group, by its id; empty where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not storage.exists(uri):
        return {}
    try:
        table = pd.read_parquet(io.BytesIO(storage.read_limited(uri, MAX_TABLE)))
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        raise _damaged(uri, "no Parquet table") from None
    missing = [name for name in ("image_id", "group_id", "split") if name not in table]
    _require(uri, not missing, f"no column {', '.join(missing)}")
    _require(uri, bool(table["split"].isin(SPLITS).all()), f"a split is none of {', '.join(SPLITS)}")
    return dict(zip(table["group_id"], table["split"], strict=True)) | dict(
        zip(table["image_id"], table["split"], strict=True)
    )


def check_prior(uri: str, fitted: Calibration, classes: int) -> None:
    """Refuse a calibration, read from the file at `uri`, that is of another number of classes.

    Raises:
        UserError: the file is damaged.
    """
    _require(uri, len(fitted.prior) == classes, f"prior is not {classes} shares")


def _calibration(uri: str, result: Any) -> Calibration:
    try:
        fitted = Calibration(**result)
    except TypeError:
        raise _damaged(uri, "no calibration") from None
    numbers = [fitted.temperature, fitted.tau, *_values(fitted.prior), *_values(fitted.thresholds)]
    if fitted.tried is not None:
        numbers += [*_values(fitted.tried), fitted.without, fitted.crossed]
        _require(uri, len(_values(fitted.tried)) == 2, "tried is no temperature and tau")
    finite = all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)
    _require(uri, finite, "a number of its calibration is none")
    _require(uri, fitted.temperature > 0, f"temperature is {fitted.temperature}, not above 0")
    prior = _values(fitted.prior)
    _require(uri, bool(prior) and min(prior) >= 0, "prior is no shares")
    return fitted


def _values(part: Any) -> list[Any]:
    """Return the numbers of a list or an object; of anything else NaN, which is refused."""
    if isinstance(part, dict):
        return list(part.values())
    return list(part) if isinstance(part, list | tuple) else [math.nan]


def _require(uri: str, holds: bool, fault: str) -> None:
    if not holds:
        raise _damaged(uri, fault)


def _damaged(uri: str, fault: str) -> UserError:
    return UserError(f"{uri} is damaged ({fault[:200]}): copy it again from its run, or move it away")
