"""The three layouts in which HAM10000 is handed out, brought to one metadata table and one index of images.

- kaggle: `HAM10000_metadata.csv` beside image folders; the real zip holds each folder twice, once in lower case.
- dataverse: `HAM10000_metadata` (also `.tab`; comma or tab), with a column `dataset` that is never read: the source of
  an image gives its class away. The test set's `ISIC2018_Task3_Test_GroundTruth.csv` may stand beside it, in that form.
- isic2018: one-hot `ISIC2018_Task3_{Training,Validation,Test}_GroundTruth.csv` and `…_LesionGroupings.csv`.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ham_ray.data import archives
from ham_ray.data.archives import Files, Member
from ham_ray.diagnoses import DIAGNOSES
from ham_ray.errors import UserError, unknown_name

LAYOUTS = ("kaggle", "dataverse", "isic2018")
COLUMNS = ("image_id", "lesion_id", "dx", "partition", "age", "sex", "localization", "dx_type")
SYNTHETIC_MARKER = "SYNTHETIC.txt"
SYNTHETIC_PREFIX = "SYNTHETIC_"  # of image ids: what is known of drawings wherever their predictions go
_REQUIRED = ("image_id", "lesion_id", "dx")
_HAM_METADATA = re.compile(r"HAM10000_metadata(\.csv|\.tab|\.tsv|\.txt)?", re.IGNORECASE)
_GROUND_TRUTH = re.compile(r"ISIC2018_Task3_(Training|Validation|Test)_GroundTruth\.csv", re.IGNORECASE)
_GROUPINGS = re.compile(r"ISIC2018_Task3_(Training|Validation|Test)_LesionGroupings\.csv", re.IGNORECASE)
_PARTITION_FOLDER = re.compile(r"ISIC2018_Task3_(Training|Validation|Test)_(Input|Images)", re.IGNORECASE)
_CONFIRMATIONS = {"confocal": "confocal", "histo": "histo", "serial": "follow_up", "consensus": "consensus"}


@dataclass(frozen=True)
class Archive:
    """An archive that was understood.

    `metadata` has the columns of `COLUMNS` and `file` (where the row stands), all strings, "" where nothing is given;
    its rows are unchecked. `images` maps an image_id to its files: more than one where the archive repeats it.
    """

    path: Path
    layout: str
    signature: str
    metadata: pd.DataFrame
    images: dict[str, list[Member]]
    unsafe: list[Member]
    synthetic: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def partitions(self) -> list[str]:
        """The official partitions that have metadata here."""
        return sorted(self.metadata["partition"].unique())


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
    notes: list[str] = []
    tables = _read_isic(files, safe, notes) if layout == "isic2018" else _read_ham(files, safe, notes)
    metadata = pd.concat(tables, ignore_index=True).reindex(columns=[*COLUMNS, "file"])
    return Archive(
        path=files.path,
        layout=layout,
        signature=files.signature,
        metadata=metadata.astype(object).fillna(""),
        images=_index(safe, set(metadata["partition"]), notes),
        unsafe=[member for member in files.members if not member.is_safe],
        synthetic=any(member.file_name == SYNTHETIC_MARKER for member in safe),
        notes=notes,
    )


def recognise(members: list[Member]) -> str | None:
    """The layout whose metadata is among these files; None where there is none."""
    if ham := _named(members, _HAM_METADATA):
        from_kaggle = ham[0].name.lower().endswith(".csv") and "dataset" not in _read_table(ham[0])
        return "kaggle" if from_kaggle else "dataverse"
    return "isic2018" if _named(members, _GROUND_TRUTH) else None


def read_labels(member: Member) -> pd.DataFrame:
    """A file of diagnoses by itself: HAM10000's metadata (image_id, dx, …) or ISIC's ground truth (image, MEL, …).

    Raises:
        UserError: neither.
    """
    table = _read_table(member)
    if {"image_id", "dx"} <= set(table):
        return table
    _require(table, member, ("image", *(diagnosis.isic.lower() for diagnosis in DIAGNOSES)))
    return _isic_table(member, "test", None)


def _recognised(path: Path, members: list[Member]) -> str:
    if layout := recognise(members):
        return layout
    inner = [member.label for member in members if member.name.lower().endswith(".zip")]
    hint = f"unpack the outer zip first: it holds {inner[0]}" if inner else f"found {', '.join(_top(members))}"
    raise UserError(f"no metadata in {path}: neither HAM10000_metadata nor ISIC2018_Task3_*_GroundTruth.csv; {hint}")


def _top(members: list[Member], most: int = 5) -> list[str]:
    names = list(dict.fromkeys(member.label.partition("/")[0] for member in members))
    return names[:most] + ["…"] * (len(names) > most)


def _named(members: list[Member], pattern: re.Pattern[str]) -> list[Member]:
    """The files of that name, the least deep first."""
    found = [member for member in members if pattern.fullmatch(member.file_name)]
    return sorted(found, key=lambda member: (member.label.count("/"), member.label))


def _index(members: list[Member], partitions: set[str], notes: list[str]) -> dict[str, list[Member]]:
    """Files by image_id. Official partitions whose ground truth is absent are left aside: they cannot have labels."""
    images, aside = defaultdict(list), 0
    for member in members:
        if member.is_image:
            folder = _PARTITION_FOLDER.search(member.label)
            if folder and folder[1].lower() not in partitions:
                aside += 1
            else:
                images[member.image_id].append(member)
    if aside:
        notes.append(f"{aside} images of an official partition without its ground truth were left aside")
    return dict(images)


def _read_ham(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    found = _named(members, _HAM_METADATA)
    if not found:
        raise UserError(f"no HAM10000_metadata in {files.path}; found {', '.join(_top(members))}")
    tables = [_ham_table(found[0], "training", notes)]
    for truth in _named(members, _GROUND_TRUTH)[:1]:
        if "dx" in _read_table(truth):
            tables.append(_ham_table(truth, "test", notes))
    return tables


def _ham_table(member: Member, partition: str, notes: list[str]) -> pd.DataFrame:
    table = _read_table(member)
    _require(table, member, _REQUIRED)
    absent = [name for name in ("age", "sex", "localization", "dx_type") if name not in table]
    if absent:
        notes.append(f"{member.label} has no column {', '.join(absent)}: left empty")
    return table.assign(partition=partition, file=member.label)


def _read_isic(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    truths = {_partition(member, _GROUND_TRUTH): member for member in reversed(_named(members, _GROUND_TRUTH))}
    if not truths:
        raise UserError(f"no ISIC2018_Task3_*_GroundTruth.csv in {files.path}; found {', '.join(_top(members))}")
    groupings = {_partition(member, _GROUPINGS): member for member in _named(members, _GROUPINGS)}
    if "training" in truths and "training" not in groupings:
        raise UserError(
            f"{files.path} has no ISIC2018_Task3_Training_LesionGroupings.csv: without it, images of one lesion would "
            "be in training and test at once; download it from the ISIC 2018 challenge's data page"
        )
    notes.append("ISIC 2018 gives no age, sex or localization: left empty")
    return [_isic_table(truths[name], name, groupings.get(name)) for name in sorted(truths)]


def _partition(member: Member, pattern: re.Pattern[str]) -> str:
    match = pattern.fullmatch(member.file_name)
    assert match is not None  # it was found by this pattern
    return match[1].lower()


def _isic_table(truth: Member, partition: str, groupings: Member | None) -> pd.DataFrame:
    table = _read_table(truth)
    columns = {d.isic.lower(): d.dx for d in DIAGNOSES}
    _require(table, truth, ("image", *columns))
    chosen = table[list(columns)].apply(pd.to_numeric, errors="coerce") == 1
    # Two classes at once read "mel+nv", an unknown diagnosis; none at all reads "", an empty value.
    dx = chosen.apply(lambda row: "+".join(columns[name] for name in columns if row[name]), axis=1)
    rows = pd.DataFrame({"image_id": table["image"], "dx": dx, "partition": partition, "file": truth.label}, dtype=str)
    if groupings is None:
        return rows
    lesions = _read_table(groupings)
    _require(lesions, groupings, ("image", "lesion_id"))
    names = {"image": "image_id", "diagnosis_confirm_type": "dx_type"}
    lesions = lesions.drop_duplicates("image").rename(columns=names)
    if "dx_type" in lesions:
        lesions["dx_type"] = lesions["dx_type"].map(_confirmation)
    return rows.merge(lesions, on="image_id", how="left")


def _confirmation(text: str) -> str:
    """ISIC's sentence on how the label was made, in HAM10000's word."""
    return next((word for key, word in _CONFIRMATIONS.items() if key in text.lower()), text)


def _read_table(member: Member) -> pd.DataFrame:
    """A comma or tab separated file as strings, column names in lower case."""
    try:
        text = archives.read(member).decode("utf-8-sig")
        separator = "\t" if "\t" in text.partition("\n")[0] else ","
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (archives.UnreadableMember, ValueError) as error:  # pandas' and decoding errors are ValueErrors
        raise UserError(f"cannot read {member.label}: {' '.join(str(error).split())}") from None
    table.columns = [str(name).strip().lower() for name in table.columns]
    return table.apply(lambda column: column.str.strip())


def _require(table: pd.DataFrame, member: Member, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise UserError(f"{member.label} has no column {', '.join(missing)}; found {', '.join(table.columns)}")
