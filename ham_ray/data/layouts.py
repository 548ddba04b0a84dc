"""An archive in any known layout, brought to one metadata table and one index of images."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from ham_ray.data import archives, cells, datasets, huggingface, isic_cli
from ham_ray.data.archives import Member, Skipped
from ham_ray.data.classes import Classes
from ham_ray.data.dataset import Dataset
from ham_ray.data.images import CARD
from ham_ray.data.metadata import COLUMNS, LABEL_NAMES, NO_CLASS, hint, one_hot, read_one_hot, read_table, require
from ham_ray.data.terms import LAYOUTS
from ham_ray.errors import UserError, listed, unknown_name

SYNTHETIC_MARKER = "SYNTHETIC.txt"
SYNTHETIC_PREFIX = "SYNTHETIC_"  # of image ids: what is known of drawings wherever their predictions go
_PARTITION_FOLDER = re.compile(r"ISIC_?20\d\d_(?:Task3_)?(Training|Validation|Test)_(?:Input|Images)", re.IGNORECASE)


@dataclass(frozen=True)
class Archive:
    """An archive that was understood.

    `metadata` has the columns of `COLUMNS` and `file` (where the row stands), all strings as `cells.cleaned` leaves
    them, "" where nothing is given; its rows are unchecked. `images` maps an image_id to its files: more than one where
    the archive repeats it. Pictures `packed` in Parquet files can be read after `huggingface.unpacked`.
    `skipped` are entries that are never opened.
    """

    path: Path
    layout: str
    signature: str
    metadata: pd.DataFrame
    images: dict[str, list[Member]]
    unsafe: list[Member]
    synthetic: bool = False
    notes: list[str] = field(default_factory=list)
    packed: tuple[Path, ...] = ()
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def partitions(self) -> list[str]:
        """The official partitions that have metadata here."""
        return sorted(self.metadata["partition"].unique())

    @property
    def dataset(self) -> Dataset:
        """The data set that this is a layout of."""
        return datasets.LAYOUTS[self.layout][0]

    @cached_property
    def classes(self) -> Classes:
        """The classes of the data set, or else those that are named here, in alphabetic order."""
        return self.dataset.classes or datasets.classes_of(sorted({*self.metadata["dx"]} - {""}))


def open_archive(archive: str | Path, layout: str | None = None) -> Archive:
    """Look into a folder or a zip and read its metadata; images are listed only.

    Raises:
        UserError: the path, the layout's name, its metadata file or one of the file's required columns is missing.
    """
    if layout is not None and layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    files = archives.list_files(archive)
    safe = [member for member in files.members if member.is_safe]
    layout = layout or _recognised(files.path, safe)
    dataset, form = datasets.LAYOUTS[layout]
    notes: list[str] = []
    tables = form.read(files, safe, notes)
    notes += files.beside()
    metadata = pd.concat(tables, ignore_index=True).reindex(columns=[*COLUMNS, "file"]).astype(object).fillna("")
    if not dataset.own_folds:
        metadata["fold"] = ""
    of_none = set(metadata["image_id"][metadata["dx"] == NO_CLASS])
    metadata, changes = cells.cleaned(metadata[metadata["dx"] != NO_CLASS], dataset.classes)
    packed = [member for member in safe if huggingface.is_packed(member)] if form.packed else []
    images = huggingface.index(packed) if packed else (form.index or _index)(safe)
    images = _of_partitions(images, set(metadata["partition"]), notes)
    metadata["image_id"], matched = cells.match_ids(metadata["image_id"], images)
    if of_none:
        notes.append(f"{len(of_none):,} images are of none of the classes, by {form.expected}: left out")
    return Archive(
        path=files.path,
        layout=layout,
        signature=files.signature,
        metadata=metadata,
        images={image_id: members for image_id, members in images.items() if image_id not in of_none},
        unsafe=[member for member in files.members if not member.is_safe],
        synthetic=any(member.file_name == SYNTHETIC_MARKER for member in safe),
        notes=[*notes, *changes, *matched],
        packed=tuple(Path(member.container, member.name) for member in packed),
        skipped=files.skipped,
    )


def recognise(members: list[Member], labelled: bool = False) -> str | None:
    """Return the layout whose metadata is among these files; None where there is none.

    Args:
        labelled: whether the pictures are known to have labels, so that the names of their folders may be labels.
    """
    layouts = [(name, layout) for name, (_, layout) in datasets.LAYOUTS.items() if labelled or not layout.asked]
    return next((name for name, layout in layouts if layout.recognise(members)), None)


def read_labels(member: Member, classes: Classes) -> tuple[pd.DataFrame, list[str]]:
    """Read a file of diagnoses by itself: metadata of any layout, or one-hot (image, a column a class).

    Returns:
        The rows with those of `COLUMNS` that the file has, dx the code of one of `classes` where it is one; and notes.

    Raises:
        UserError: the file cannot be read, or is neither.
    """
    table, notes = read_table(member), list[str]()
    if isic_cli.is_export(set(table.columns)):
        dataset = datasets.of_classes(classes)
        by_name = dataset.archive_code if dataset else None
        table = isic_cli.in_columns(table, by_name or (lambda image_id, text: classes.code_of(text)), notes)
    elif "image" in table and len({*one_hot(table, classes).values()} & {*classes.codes}) > 1:
        table = read_one_hot(member, "test", classes, classes.codes)
    else:
        spare = {name: wanted for name, wanted in LABEL_NAMES.items() if name in table and wanted not in table}
        table = table.rename(columns=spare)
        require(table, member, ("image_id", "dx"))
    table = table[[name for name in COLUMNS if name in table]].astype(object).fillna("")
    table, changes = cells.cleaned(table, classes)
    return table, [*notes, *changes]


def _recognised(path: Path, members: list[Member]) -> str:
    if any(member.label == CARD for member in members):
        raise UserError(f"{path} is a finished IMAGES table already: --data {path} takes it as it is")
    if layout := recognise(members, labelled=True):
        return layout
    expected = listed(layout.expected for _, layout in datasets.LAYOUTS.values() if layout.expected)
    raise UserError(f"no metadata in {path}: it could be {expected}; {hint(members)}")


def _index(members: list[Member]) -> dict[str, list[Member]]:
    images = defaultdict(list)
    for member in members:
        if member.is_image:
            images[member.image_id].append(member)
    return dict(images)


def _of_partitions(images: dict[str, list[Member]], partitions: set[str], notes: list[str]) -> dict[str, list[Member]]:
    """Leave aside the files of official partitions whose ground truth is absent: they cannot have labels."""

    def is_aside(member: Member) -> bool:
        folder = _PARTITION_FOLDER.search(member.label)
        return folder is not None and folder[1].lower() not in partitions

    kept = {image_id: [one for one in members if not is_aside(one)] for image_id, members in images.items()}
    if aside := sum(map(len, images.values())) - sum(map(len, kept.values())):
        notes.append(f"{aside} images of an official partition without its ground truth were left aside")
    return {image_id: members for image_id, members in kept.items() if members}
