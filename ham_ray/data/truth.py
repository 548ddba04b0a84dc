"""What is known of images besides their pixels: from an archive, an IMAGES table or a file of diagnoses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ham_ray import storage
from ham_ray.data import layouts, metadata, splits
from ham_ray.data.archives import Member
from ham_ray.data.classes import Classes
from ham_ray.data.images import CARD, open_images

COLUMNS = ("image_id", "lesion_id", "group_id", "fold", "dx", "age", "sex", "localization", "dx_type")


@dataclass(frozen=True)
class Truth:
    """What a file, an archive or a table says of images.

    `rows` are `COLUMNS` and `label` by image_id; label is <NA> where there is none, fold -1 where there is none.
    `unknown` are the diagnoses that are of no class, as text by image_id; `notes` are sentences on how it was read.
    """

    rows: pd.DataFrame
    unknown: pd.Series
    notes: list[str] = field(default_factory=list)


def read_truth(path: str, classes: Classes) -> Truth:
    """Read what is known of the images at `path`: an IMAGES table, an archive, or a file of diagnoses.

    Args:
        classes: those of the predictions; labels are theirs.

    Raises:
        UserError: nothing there, or nothing in it that names images and diagnoses.
    """
    if storage.exists(storage.join(path, CARD)):
        return _truth(open_images(path).rows[list(COLUMNS)], classes, [])
    if Path(path).is_file() and not path.lower().endswith(".zip"):
        table, notes = layouts.read_labels(_member(Path(path)), classes)
    else:
        archive = layouts.open_archive(path)
        table, notes = archive.metadata, archive.notes
    named = table[table["image_id"] != ""]
    single = once(named)
    if lost := named["image_id"].nunique() - len(single):
        notes = [*notes, f"{lost:,} images have rows that differ and are left out"]
    return _truth(completed(single), classes, notes)


def _truth(rows: pd.DataFrame, classes: Classes, notes: list[str]) -> Truth:
    rows = rows.assign(label=labels(rows["dx"], classes)).set_index("image_id", drop=False)
    return Truth(rows, rows["dx"][rows["dx"].notna() & rows["label"].isna()], notes)


def labels(dx: pd.Series, classes: Classes) -> pd.Series:
    """Return the label of each diagnosis, Int32: by its code or another name of the class; <NA> where it is of none."""
    label_of = {text: classes.labels.get(classes.code_of(text) or "") for text in dx.dropna().unique()}
    return pd.Series(pd.array([label_of.get(text) for text in dx], "Int32"), dx.index)


def once(table: pd.DataFrame) -> pd.DataFrame:
    """Reduce metadata to a row an image; images whose rows contradict each other are left out."""
    table = table.drop_duplicates([name for name in metadata.COLUMNS if name in table])
    return table[~table["image_id"].duplicated(keep=False)]


def completed(rows: pd.DataFrame) -> pd.DataFrame:
    """Complete metadata (strings), or image ids alone, to `COLUMNS`. Lesions with a near-duplicate are one group."""
    rows = rows.reindex(columns=["image_id", "lesion_id", "dx", "age", "sex", "localization", "dx_type"])
    rows = rows.astype(object).where(rows.notna() & (rows != ""), None)
    rows["age"] = pd.to_numeric(rows["age"], errors="coerce").astype("float32")
    ids, lesions = rows["image_id"].tolist(), rows["lesion_id"].tolist()
    rows["group_id"] = splits.group_ids(ids, lesions, ids)  # pixels are compared by ingest only
    rows["fold"] = np.int32(-1)
    return rows[list(COLUMNS)].reset_index(drop=True)


def _member(path: Path) -> Member:
    return Member(str(path.parent), path.name, path.name, path.stat().st_size)
