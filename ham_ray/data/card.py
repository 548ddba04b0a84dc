"""dataset.json: what an IMAGES table holds, where it is from and under which licence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

import ham_ray
from ham_ray.data import pictures
from ham_ray.data.dataset import Licence
from ham_ray.data.images import SCHEMA_VERSION
from ham_ray.data.layouts import Archive
from ham_ray.data.quarantine import USUAL_LESION

_SYNTHETIC = Licence(
    "synthetic drawings, no photographs: free of the licence of {title}, and without any medical meaning",
    "drawn by ham_ray.data.sample",
)
_LIBRARIES = ("pillow", "pyarrow")  # what pixels and files depend on
_LIMITS = "no patient ids exist: images of one patient's different lesions may be in different folds"


def fingerprint(rows: pd.DataFrame, size: int, geometry: str) -> str:
    """Compute the sha256, in hex, that names a table's content.

    A version of its own, size and geometry go into it, and each row's id, diagnosis, group, fold and pixels; the order
    of rows does not.
    """
    digest = hashlib.sha256(f"1 {size} {geometry}\n".encode())
    columns = rows.sort_values("image_id")[["image_id", "dx", "group_id", "fold", "pixel_hash"]]
    for row in columns.itertuples(index=False):
        digest.update(("\t".join(map(str, row)) + "\n").encode())
    return digest.hexdigest()


def write(
    archive: Archive, rows: pd.DataFrame, moments: np.ndarray, quarantined: dict[str, int], size: int, geometry: str
) -> dict[str, Any]:
    """Make the data card, ready for JSON.

    Args:
        rows: IMAGES without the column `image`.
        moments: `Picture.moments` summed over all images, int64[2, 3].
        quarantined: how many images (or files) were left out, by reason.
        size: side of the stored images in pixels.
    """
    mean, std = _channel_statistics(moments, len(rows) * size * size)
    codes, dataset = archive.classes.codes, archive.dataset
    licence = _SYNTHETIC if archive.synthetic else dataset.licence
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint(rows, size, geometry),
        "dataset": dataset.name,
        "size": size,
        "geometry": geometry,
        "encoding": pictures.ENCODING,
        "synthetic": archive.synthetic,
        "source": {
            "file": archive.path.name,
            "layout": archive.layout,
            "partitions": archive.partitions,
            "signature": archive.signature,
        },
        "images": len(rows),
        "lesions": int(rows["lesion_id"].nunique()),
        "groups": int(rows["group_id"].nunique()),
        "classes": {dx: _class_counts(rows[rows["dx"] == dx]) for dx in codes},  # in the order of labels
        "folds": _fold_counts(rows, codes),
        "missing": {name: int(rows[name].isna().sum()) for name in rows.columns if rows[name].isna().any()},
        "same_pixels": same_pixels(rows),
        "quarantined": quarantined,
        "channel_mean": mean,
        "channel_std": std,
        "notes": [*archive.notes, _LIMITS],
        "licence": licence.licence.format(title=dataset.title),
        "attribution": licence.attribution,
        "citation": list(licence.citation),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"ham_ray": ham_ray.__version__} | {name: version(name) for name in _LIBRARIES},
    }


def to_json(contents: dict[str, Any]) -> bytes:
    """Write a data card as dataset.json, UTF-8."""
    return json.dumps(contents, indent=1, ensure_ascii=False).encode()


def same_pixels(rows: pd.DataFrame) -> list[list[str]]:
    """List the image_ids that share their resized pixels, two or more in each list."""
    repeated = rows[rows["pixel_hash"].duplicated(keep=False)]
    return sorted(sorted(ids) for _, ids in repeated.groupby("pixel_hash")["image_id"])


def contradictions(rows: pd.DataFrame) -> Iterable[str]:
    """Describe images that share pixels and differ in diagnosis or official partition, a sentence for each set.

    The images stay in the table: nothing in it says which of them is right.
    """
    by_id = rows.set_index("image_id")
    for ids in same_pixels(rows):
        for name in ("dx", "partition"):
            values = by_id.loc[ids, name]
            if values.nunique() > 1:
                yield f"same pixels, different {name}: " + ", ".join(f"{i} {v}" for i, v in values.items())


def odd_lesions(rows: pd.DataFrame) -> Iterable[str]:
    """Describe lesions that may be none: very many images, or several diagnoses, under one lesion_id."""
    lesions = rows.groupby("lesion_id")
    sizes, diagnoses = lesions.size(), lesions["dx"].agg(lambda dx: sorted(set(dx)))
    for name, size in sizes[sizes > USUAL_LESION].items():
        yield f"lesion {name!r} has {size:,} images, more than {USUAL_LESION}: is it one lesion?"
    mixed = diagnoses[diagnoses.map(len) > 1]
    if len(mixed):
        some = "; ".join(f"{name!r} {', '.join(dx)}" for name, dx in mixed.head(3).items())
        yield f"{len(mixed):,} lesions have images of several diagnoses, are they one each? {some}"


def _class_counts(rows: pd.DataFrame) -> dict[str, int]:
    return {"images": len(rows), "lesions": int(rows["lesion_id"].nunique()), "groups": int(rows["group_id"].nunique())}


def _fold_counts(rows: pd.DataFrame, codes: tuple[str, ...]) -> dict[str, dict[str, int]]:
    table = pd.crosstab(rows["fold"], rows["dx"]).reindex(columns=list(codes), fill_value=0)
    return {str(fold): {dx: int(row[dx]) for dx in codes} for fold, row in table.iterrows()}


def _channel_statistics(moments: np.ndarray, pixels: int) -> tuple[list[float], list[float]]:
    first, second = moments / pixels
    std = np.sqrt(second - first**2)
    return [round(float(m) / 255, 6) for m in first], [round(float(s) / 255, 6) for s in std]
