"""What is known of images besides their pixels: from an archive, an IMAGES table or a file of diagnoses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ham_ray import storage
from ham_ray.data import layouts, splits
from ham_ray.data.archives import Member
from ham_ray.data.images import CARD, open_images
from ham_ray.diagnoses import CODES, LABELS

COLUMNS = ("image_id", "lesion_id", "group_id", "fold", "label", "age", "sex", "localization", "dx_type")


@dataclass(frozen=True)
class Truth:
    """What a file, an archive or a table says of images.

    `rows` are `COLUMNS` by image_id; label is <NA> where there is none, fold -1 where there is none. `unknown` are the
    diagnoses that are none of the seven, as text by image_id; `notes` are sentences on how it was read.
    """

    rows: pd.DataFrame
    unknown: pd.Series
    notes: list[str] = field(default_factory=list)


def read_truth(place: str) -> Truth:
    """What is known of the images at `place`: an IMAGES table, an archive, or a file of diagnoses.

    Raises:
        UserError: nothing there, or nothing in it that names images and diagnoses.
    """
    if storage.exists(storage.join(place, CARD)):
        return Truth(open_images(place).rows[list(COLUMNS)].set_index("image_id", drop=False), pd.Series(dtype=object))
    if Path(place).is_file() and not place.lower().endswith(".zip"):
        table, notes = layouts.read_labels(_member(Path(place)))
    else:
        archive = layouts.open_archive(place)
        table, notes = archive.metadata, archive.notes
    named = table[table["image_id"] != ""]
    single = once(named)
    if lost := named["image_id"].nunique() - len(single):
        notes = [*notes, f"{lost:,} images have rows that differ and are left out"]
    unknown = single.set_index("image_id")["dx"]
    return Truth(
        completed(single).set_index("image_id", drop=False), unknown[(unknown != "") & ~unknown.isin(CODES)], notes
    )


def once(table: pd.DataFrame) -> pd.DataFrame:
    """Metadata with a row an image; images whose rows contradict each other are left out."""
    table = table.drop_duplicates([name for name in layouts.COLUMNS if name in table])
    return table[~table["image_id"].duplicated(keep=False)]


def completed(rows: pd.DataFrame) -> pd.DataFrame:
    """Metadata as strings, or image ids alone, to `COLUMNS`. Lesions that share a near-duplicate are one group."""
    rows = rows.reindex(columns=["image_id", "lesion_id", "dx", "age", "sex", "localization", "dx_type"])
    rows = rows.astype(object).where(rows.notna() & (rows != ""), None)
    rows["label"] = pd.array([LABELS.get(str(dx)) for dx in rows["dx"]], "Int32")
    rows["age"] = pd.to_numeric(rows["age"], errors="coerce").astype("float32")
    ids, lesions = rows["image_id"].tolist(), rows["lesion_id"].tolist()
    rows["group_id"] = splits.group_ids(ids, lesions, ids)  # pixels are compared by ingest only
    rows["fold"] = np.int32(-1)
    return rows[list(COLUMNS)].reset_index(drop=True)


def _member(path: Path) -> Member:
    return Member(str(path.parent), path.name, path.name, path.stat().st_size)
