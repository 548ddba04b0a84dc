"""What is known of images besides their pixels: from an archive, an IMAGES table or a file of diagnoses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ham_ray import storage
from ham_ray.data import layouts, splits
from ham_ray.data.archives import Member
from ham_ray.data.images import CARD, open_images
from ham_ray.diagnoses import LABELS

COLUMNS = ("image_id", "lesion_id", "group_id", "fold", "label", "age", "sex", "localization", "dx_type")


def read_truth(place: str) -> pd.DataFrame:
    """`COLUMNS` of the images at `place`, by image_id; label is <NA> where it gives none, fold -1 where none.

    Raises:
        UserError: nothing there, or nothing in it that names images and diagnoses.
    """
    if storage.exists(storage.join(place, CARD)):
        return open_images(place).rows[list(COLUMNS)].set_index("image_id", drop=False)
    if Path(place).is_file() and not place.lower().endswith(".zip"):
        table = layouts.read_labels(_member(Path(place)))
    else:
        table = layouts.open_archive(place).metadata
    return completed(once(table)).set_index("image_id", drop=False)


def once(table: pd.DataFrame) -> pd.DataFrame:
    """Metadata with a row an image; images whose rows contradict each other are left out."""
    table = table.drop_duplicates([name for name in layouts.COLUMNS if name in table])
    return table[~table["image_id"].duplicated(keep=False)]


def completed(rows: pd.DataFrame) -> pd.DataFrame:
    """Metadata as strings, or image ids alone, to `COLUMNS`. Lesions that share a near-duplicate are one group."""
    rows = rows.reindex(columns=["image_id", "lesion_id", "dx", "age", "sex", "localization", "dx_type"])
    rows = rows.astype(object).where(rows.notna() & ~rows.isin(["", "unknown"]), None)
    rows["label"] = pd.array([LABELS.get(str(dx).lower()) for dx in rows["dx"]], "Int32")
    rows["age"] = pd.to_numeric(rows["age"], errors="coerce").astype("float32")
    ids, lesions = rows["image_id"].tolist(), rows["lesion_id"].tolist()
    rows["group_id"] = splits.group_ids(ids, lesions, ids)  # pixels are compared by ingest only
    rows["fold"] = np.int32(-1)
    return rows[list(COLUMNS)].reset_index(drop=True)


def _member(path: Path) -> Member:
    return Member(str(path.parent), path.name, path.name, path.stat().st_size)
