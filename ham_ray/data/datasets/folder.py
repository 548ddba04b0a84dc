"""Images of one's own: a folder of class-named folders, or any folder with a CSV of `image,label[,group][,fold]`.

Layouts:

- labels: a table with the columns image and label (also image_id, file, path; dx, diagnosis, class). `group` (also
  lesion_id, patient_id) names what must not be in two folds; `fold` is the user's own, 0 to 4, of every row.
- folders: without a table; each picture is of the class that its folder is named after.

Classes are those that are named, in alphabetic order. Without groups each image is one by itself, and all pages say
that leakage between photographs of one lesion cannot be excluded.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pandas as pd

from ham_ray.data.archives import Files, Member
from ham_ray.data.dataset import Dataset, Layout, Licence, Sample
from ham_ray.data.datasets import ham10000
from ham_ray.data.metadata import hint, read_table
from ham_ray.errors import UserError

_COLUMNS = {
    "image_id": ("image_id", "image", "file", "filename", "file_name", "path"),
    "dx": ("dx", "label", "diagnosis", "class"),
    "lesion_id": ("lesion_id", "group", "group_id", "patient_id"),
    "fold": ("fold",),
}
_MOST_TABLES = 20  # that are looked into: a folder may hold a text beside each picture
_TABLE = re.compile(r".*\.(csv|tsv|tab|txt)", re.IGNORECASE)


def index(members: list[Member]) -> dict[str, list[Member]]:
    """Map pictures by the name without folder and suffix where no two share it, else by their path."""
    pictures = [member for member in members if member.is_image]
    times = Counter(member.image_id for member in pictures)
    images: dict[str, list[Member]] = defaultdict(list)
    for member in pictures:
        images[member.image_id if times[member.image_id] == 1 else member.label].append(member)
    return dict(images)


def _table(members: list[Member]) -> tuple[Member, pd.DataFrame] | None:
    """Read the least deep table with images and labels, its columns renamed; None where there is none."""
    tables = [member for member in members if _TABLE.fullmatch(member.file_name)]
    for member in sorted(tables, key=lambda member: (member.label.count("/"), member.label))[:_MOST_TABLES]:
        try:
            table = read_table(member)
        except UserError:
            continue  # no table: another may be
        own = {name: next((name for name in known if name in table), None) for name, known in _COLUMNS.items()}
        if own["image_id"] and own["dx"]:
            return member, table.rename(columns={column: name for name, column in own.items() if column})
    return None


def _read_labels(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    if (labelled := _table(members)) is None:
        raise UserError(f"no table of image and label in {files.path}; {hint(members)}")
    member, table = labelled
    by_path = {one.label: image_id for image_id, ones in index(members).items() for one in ones}
    top = member.label.rpartition("/")[0]  # paths may begin where the table is
    within = {path.removeprefix(f"{top}/"): image_id for path, image_id in by_path.items()}
    names = table["image_id"].str.replace("\\", "/", regex=False).str.removeprefix("./")
    table["image_id"] = [by_path.get(name) or within.get(name) or name for name in names]
    if "lesion_id" not in table:
        table["lesion_id"] = ""
    if "fold" in table and (wrong := sorted({*table["fold"]} - {*"01234"})):
        raise UserError(f"{member.label}: fold {wrong[0]!r}: 0 to 4 of each row, or no such column")
    return [table.assign(partition="training", file=member.label)]


def _classed(members: list[Member]) -> list[Member]:
    """List the pictures that are in a folder; none of them unless two folders at least have some."""
    pictures = [member for member in members if member.is_image and "/" in member.label]
    return pictures if len({_class(member) for member in pictures}) > 1 else []


def _class(member: Member) -> str:
    return member.label.rpartition("/")[0].rpartition("/")[2]


def _read_folders(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    if not (pictures := _classed(members)):
        raise UserError(f"no two folders with pictures in {files.path}; {hint(members)}")
    ids = {one: image_id for image_id, ones in index(members).items() for one in ones}
    counts = ", ".join(f"{name} ({count:,})" for name, count in sorted(Counter(map(_class, pictures)).items()))
    notes.append(f"classes by the names of folders: {counts}")
    rows = [(ids[one], "", _class(one), one.label) for one in pictures]
    return [pd.DataFrame(rows, columns=["image_id", "lesion_id", "dx", "file"]).assign(partition="training")]


def _sample_metadata(rows: list[dict[str, str]]) -> dict[str, bytes]:
    return {}  # the folders say it all


_LOOKS = ham10000.DATASET.sample.looks
DATASET = Dataset(
    name="folder",
    title="images of your own",
    classes=None,
    layouts={
        "labels": Layout(
            "a CSV of image and label", lambda members: _table(members) is not None, _read_labels, index=index
        ),
        "folders": Layout(
            "folders named after classes",
            lambda members: bool(_classed(members)),
            _read_folders,
            asked=True,
            index=index,
        ),
    },
    licence=Licence("that of your images; ham_ray does not know it", "whoever made your images"),
    sample=Sample(
        looks={"melanoma": _LOOKS["mel"], "nevus": _LOOKS["nv"], "seborrheic_keratosis": _LOOKS["bkl"]},
        common="nevus",
        picture=lambda number, image_id, dx: f"{dx}/{image_id}.jpg",
        metadata=_sample_metadata,
    ),
    has_lesions=False,
    own_folds=True,
)
