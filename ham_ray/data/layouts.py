"""The layouts in which HAM10000 and its like are handed out, brought to one metadata table and one index of images.

- kaggle: `HAM10000_metadata.csv` beside image folders; the real zip holds each folder twice, once in lower case.
- dataverse: `HAM10000_metadata` (also `.tab`; comma or tab), with a column `dataset` that is never read: the source of
  an image gives its class away. The test set's `ISIC2018_Task3_Test_GroundTruth.csv` may stand beside it, in that form.
- isic2018: one-hot `ISIC2018_Task3_{Training,Validation,Test}_GroundTruth.csv` and `…_LesionGroupings.csv`.
- isic-cli: `metadata.csv` with isic_id, diagnosis_1 … diagnosis_5, lesion_id, as `isic image download` writes it.
- huggingface: Parquet files that hold the pictures themselves beside image_id, lesion_id and dx.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ham_ray.data import archives, cells, huggingface, isic_cli, user_tables
from ham_ray.data.archives import Files, Member, Skipped
from ham_ray.data.images import CARD
from ham_ray.data.terms import LAYOUTS
from ham_ray.diagnoses import CODES, code_of
from ham_ray.errors import UserError, unknown_name

COLUMNS = ("image_id", "lesion_id", "dx", "partition", "age", "sex", "localization", "dx_type")
SYNTHETIC_MARKER = "SYNTHETIC.txt"
SYNTHETIC_PREFIX = "SYNTHETIC_"  # of image ids: what is known of drawings wherever their predictions go
_REQUIRED = ("image_id", "lesion_id", "dx")
_HAM_METADATA = re.compile(r"HAM10000_metadata(\.csv|\.tab|\.tsv|\.txt)?", re.IGNORECASE)
_GROUND_TRUTH = re.compile(r"ISIC2018_Task3_(Training|Validation|Test)_GroundTruth\.csv", re.IGNORECASE)
_GROUPINGS = re.compile(r"ISIC2018_Task3_(Training|Validation|Test)_LesionGroupings\.csv", re.IGNORECASE)
_PARTITION_FOLDER = re.compile(r"ISIC2018_Task3_(Training|Validation|Test)_(Input|Images)", re.IGNORECASE)
_METADATA = re.compile(r".*metadata.*", re.IGNORECASE)
_TABLE = re.compile(r".*\.(csv|tsv|tab|txt|xlsx?|ods|json|jsonl|parquet)", re.IGNORECASE)
_SPLIT = re.compile(r"(?:^|/)(train|validation|val|test)\b", re.IGNORECASE)
_LABEL_NAMES = {"isic_id": "image_id", "image": "image_id", "image_name": "image_id", "diagnosis": "dx", "label": "dx"}


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
    tables = _READERS[layout](files, safe, notes)
    notes += files.beside()
    metadata = pd.concat(tables, ignore_index=True).reindex(columns=[*COLUMNS, "file"]).astype(object).fillna("")
    metadata, said = cells.cleaned(metadata)
    packed = _packed(safe) if layout == "huggingface" else []
    images = huggingface.index(packed) if packed else _index(safe, set(metadata["partition"]), notes)
    metadata["image_id"], matched = cells.match_ids(metadata["image_id"], images)
    return Archive(
        path=files.path,
        layout=layout,
        signature=files.signature,
        metadata=metadata,
        images=images,
        unsafe=[member for member in files.members if not member.is_safe],
        synthetic=any(member.file_name == SYNTHETIC_MARKER for member in safe),
        notes=[*notes, *said, *matched],
        packed=tuple(Path(member.container, member.name) for member in packed),
        skipped=files.skipped,
    )


def recognise(members: list[Member]) -> str | None:
    """The layout whose metadata is among these files; None where there is none."""
    if ham := _named(members, _HAM_METADATA):
        columns = set(_read_table(ham[0]).columns)
        if not isic_cli.is_export(columns):
            return "kaggle" if ham[0].name.lower().endswith(".csv") and "dataset" not in columns else "dataverse"
    if _named(members, _GROUND_TRUTH):
        return "isic2018"
    if _isic_cli_file(members):
        return "isic-cli"
    return "huggingface" if any(map(_seems_packed, members)) else None


def read_labels(member: Member) -> tuple[pd.DataFrame, list[str]]:
    """A file of diagnoses by itself, metadata of any layout or one-hot (image, MEL, …); and what to say of its reading.

    Raises:
        UserError: neither.
    """
    table, notes = _read_table(member), list[str]()
    if isic_cli.is_export(set(table.columns)):
        table = isic_cli.in_ham_columns(table, notes)
    elif "image" in table and len({*_one_hot(table).values()} & {*CODES}) > 1:
        table = _isic_table(member, "test", None)
    else:
        spare = {name: wanted for name, wanted in _LABEL_NAMES.items() if name in table and wanted not in table}
        table = table.rename(columns=spare)
        _require(table, member, ("image_id", "dx"))
    table, said = cells.cleaned(table[[name for name in COLUMNS if name in table]].astype(object).fillna(""))
    return table, [*notes, *said]


def _recognised(path: Path, members: list[Member]) -> str:
    if any(member.label == CARD for member in members):
        raise UserError(f"{path} is a finished IMAGES table already: --data {path} takes it as it is")
    if layout := recognise(members):
        return layout
    raise UserError(
        f"no metadata in {path}: neither HAM10000_metadata, ISIC2018_Task3_*_GroundTruth.csv, isic-cli's metadata.csv "
        f"(isic_id, diagnosis_1, …) nor Parquet with image and dx; {_hint(members)}"
    )


def _hint(members: list[Member]) -> str:
    """What may be meant as metadata comes first: a list of pictures would hide it."""
    inner = [member.label for member in members if re.search(r"\.(zip|parquet)$", member.name, re.IGNORECASE)]
    if inner and members[0].place is not None:
        return f"unpack the outer zip first: it holds {inner[0]}"
    tables = sorted(
        (member for member in members if _TABLE.fullmatch(member.file_name)),
        key=lambda member: (not _METADATA.fullmatch(member.file_name), member.label.count("/"), member.label),
    )
    pictures = sum(member.is_image for member in members)
    tops = Counter(member.label.partition("/")[0] for member in members if "/" in member.label and member not in tables)
    rest = [
        member.label for member in members if "/" not in member.label and member not in tables and not member.is_image
    ]
    found = [*(f"{member.label}{_columns(member)}" for member in tables[:3]), *(f"{top}/" for top in tops), *rest]
    counted = [f"{pictures:,} pictures"] if pictures else []
    return f"found {', '.join([*found[:5], *(['…'] if len(found) > 5 else []), *counted])}"


def _columns(member: Member) -> str:
    """The columns of a table in words, or why it cannot be read."""
    try:
        return f" (columns {', '.join(name[:40] for name in _read_table(member).columns[:8])})"
    except UserError as error:
        return f" ({error})"


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


def _packed(members: list[Member]) -> list[Member]:
    return [member for member in members if huggingface.is_packed(member)]


def _seems_packed(member: Member) -> bool:
    try:
        return huggingface.is_packed(member)
    except UserError:
        return False  # pictures beside a torn Parquet file are pictures still


def _isic_cli_file(members: list[Member]) -> Member | None:
    """The least deep file of metadata with isic-cli's columns."""
    for member in _named(members, _METADATA):
        if member.file_name.lower().endswith((".csv", ".tsv", ".txt")):
            try:
                if isic_cli.is_export(set(_read_table(member).columns)):
                    return member
            except UserError:
                continue  # another table: what cannot be read is said where nothing else fits
    return None


def _read_isic_cli(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    member = _isic_cli_file(members)
    if member is None:
        raise UserError(f"no metadata.csv with isic_id and diagnosis_1 in {files.path}; {_hint(members)}")
    table = isic_cli.in_ham_columns(_read_table(member), notes)
    _require(table, member, _REQUIRED)
    return [table.assign(partition="training", file=member.label)]


def _read_huggingface(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    packed = _packed(members)
    if not packed:
        raise UserError(f"no Parquet file with image and dx in {files.path}; {_hint(members)}")
    table = huggingface.read_metadata(packed)
    _require(table, packed[0], _REQUIRED)
    splits = sorted({match[1].lower() for member in packed if (match := _SPLIT.search(member.label))})
    if splits:
        notes.append(f"the splits of the files ({', '.join(splits)}) are not used: folds are dealt by lesion")
    return [table.assign(partition="training")]


def _read_ham(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    found = _named(members, _HAM_METADATA)
    if not found:
        raise UserError(f"no HAM10000_metadata in {files.path}; {_hint(members)}")
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
        raise UserError(f"no ISIC2018_Task3_*_GroundTruth.csv in {files.path}; {_hint(members)}")
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
    columns = _one_hot(table)
    _require(table.rename(columns=columns), truth, ("image", *CODES))
    chosen = table[list(columns)].apply(lambda column: pd.to_numeric(user_tables.numbers(column), errors="coerce")) == 1
    # Two classes at once read "mel+nv", an unknown diagnosis; none at all reads "", none.
    dx = chosen.apply(lambda row: "+".join(columns[name] for name in columns if row[name]), axis=1)
    rows = pd.DataFrame({"image_id": table["image"], "dx": dx, "partition": partition, "file": truth.label}, dtype=str)
    if groupings is None:
        return rows
    lesions = _read_table(groupings)
    _require(lesions, groupings, ("image", "lesion_id"))
    names = {"image": "image_id", "diagnosis_confirm_type": "dx_type"}
    lesions = lesions.drop_duplicates("image").rename(columns=names)
    if "dx_type" in lesions:
        lesions["dx_type"] = lesions["dx_type"].map(isic_cli.confirmation)
    return rows.merge(lesions, on="image_id", how="left")


def _one_hot(table: pd.DataFrame) -> dict[str, str]:
    """The columns of ones and zeros and their classes: the seven by any name, others (SCC, UNK) by their own."""
    found = {}
    for name in table.columns:
        code = code_of(name)
        if code or (name != "image" and set(table[name]) <= {"0", "1", "0.0", "1.0"}):
            found[name] = code or name
    return found


def _read_table(member: Member) -> pd.DataFrame:
    """A table as strings, column names in lower case."""
    try:
        table = user_tables.read_table(archives.read(member), member.label)
    except archives.UnreadableMember as error:
        raise UserError(f"cannot read {member.label}: {error}") from None
    return table.rename(columns=str.lower)


def _require(table: pd.DataFrame, member: Member, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        found = ", ".join(name[:40] for name in table.columns[:12]) + ", …" * (len(table.columns) > 12)
        raise UserError(f"{member.label} has no column {', '.join(missing)}; found {found}")


_READERS: dict[str, Callable[[Files, list[Member], list[str]], list[pd.DataFrame]]] = {
    "kaggle": _read_ham,
    "dataverse": _read_ham,
    "isic2018": _read_isic,
    "isic-cli": _read_isic_cli,
    "huggingface": _read_huggingface,
}
