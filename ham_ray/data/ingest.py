"""From an archive to IMAGES: check, resize, encode, group, fold; bad input goes to quarantine.csv.

The work is kept in `OUT.partial/`, so that a killed ingest goes on where it was; the finished table is renamed to its
place in one step, or uploaded with its data card last.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL
import pyarrow as pa

from ham_ray import progress, storage
from ham_ray.data import card, huggingface, layouts, pictures, quarantine, splits, table
from ham_ray.data import chunks as work
from ham_ray.data.chunks import CHUNK, Chunk, Executor, default_executor
from ham_ray.data.classes import Classes
from ham_ray.data.images import CARD, LEAKAGE, PICTURES, READABLE, SCHEMA, ungrouped
from ham_ray.data.layouts import Archive
from ham_ray.data.quarantine import Finding
from ham_ray.data.terms import GEOMETRIES
from ham_ray.errors import UserError, unknown_name
from ham_ray.resumable import UNOPENED, Parts, work_folder, work_path

SIZES = range(16, 1025)  # pixels
QUARANTINE = "quarantine.csv"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class IngestReport:
    """A finished table: where it is, its data card, whether it was there already, and notes for the user."""

    uri: str
    card: dict[str, Any]
    reused: bool
    notes: list[str]

    @property
    def quarantined(self) -> dict[str, int]:
        """Images (or files) left out, by reason."""
        return dict(self.card["quarantined"])

    @property
    def lines(self) -> list[str]:
        """The notes and what was left out, in lines for people."""
        bad = ", ".join(f"{count:,} {reason}" for reason, count in self.quarantined.items())
        listed = f"{bad}; see {storage.join(self.uri, QUARANTINE)}" if bad else "none"
        return [*(f"note: {note}" for note in self.notes), f"quarantined: {listed}"]


@dataclass(frozen=True)
class _Options:
    size: int
    geometry: str
    max_quarantined: float
    max_lesion: float

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UserError(f"size {self.size} is outside {SIZES.start}–{SIZES.stop - 1} pixels; 128 is the default")
        if self.geometry not in GEOMETRIES:
            raise unknown_name("geometry", self.geometry, GEOMETRIES)
        for name in ("max_quarantined", "max_lesion"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a fraction from 0 to 1, got {getattr(self, name)}")


def ingest(
    archive: str | Path,
    out: str | Path,
    size: int = 128,
    geometry: str = "crop",
    layout: str | None = None,
    max_quarantined: float = 0.01,
    max_lesion: float = 0.01,
    on_progress: Progress | None = None,
    executor: Executor | None = None,
) -> IngestReport:
    """Make the IMAGES table `out` (a path or a URI) from an archive (a folder or a zip, on a path all nodes see).

    Args:
        size: side of the stored square images in pixels.
        geometry: "crop" takes the centre square, "squash" keeps the whole image and bends its shape.
        layout: one of `layouts.LAYOUTS`; None: the first that is recognised.
        max_quarantined: the greatest fraction of images that may be left out.
        max_lesion: the greatest fraction of images that one lesion may have.
        on_progress: called with the images done and the images in all.
        executor: how chunks are run; by default Ray where a cluster is connected, else threads.

    Raises:
        UserError: the archive is unusable, too much of it is bad (then `OUT.quarantine.csv` has the reasons), or `out`
            cannot be written or holds something else.
    """
    options = _Options(size, geometry, max_quarantined, max_lesion)
    target = storage.absolute(out).removeprefix("file://")
    source = layouts.open_archive(archive, layout)
    try:
        if storage.exists(storage.join(target, CARD)):
            return _reuse(source, target, options)
        _refuse_occupied(target)
        with work_folder(work_path(target)) as folder:
            return _Ingest(source, target, options, folder).run(executor, on_progress or (lambda done, total: None))
    except OSError as error:
        raise UserError(f"cannot write {target}: {_reason(error)}") from None


class _Ingest:
    """One ingest at work: its source, target, options and work folder."""

    def __init__(self, source: Archive, target: str, options: _Options, folder: Path) -> None:
        self.source, self.target, self.options, self.folder = source, target, options, folder

    def run(self, executor: Executor | None, on_progress: Progress) -> IngestReport:
        metadata, findings = quarantine.check_metadata(self.source)
        self._judge(findings, len(metadata))  # before the long work
        self._refuse_untrainable(metadata, metadata["lesion_id"])
        chosen, how = self._executor(executor)
        chunks = self._chunks(list(metadata["image_id"]))
        kept = Parts(self.folder, self._identity(), work.SCHEMA)

        def run(missing: Sequence[int]) -> Iterator[tuple[int, pa.Table]]:
            return chosen(work.process, [chunks[number] for number in missing])

        kept.fill({chunk.number: len(chunk.images) for chunk in chunks}, run, on_progress)
        good, bad = _sift(work.facts(kept, chunks).to_pandas())
        findings += bad
        self._judge(findings, len(good))
        rows = _rows(metadata, good, self.source.classes)
        rows = rows.iloc[table.stored_order(rows)].reset_index(drop=True)
        self._refuse_untrainable(rows, rows["group_id"])
        moments = np.stack(good["moments"].to_list()).sum(axis=0).reshape(2, 3)
        contents = card.write(
            self.source, rows, moments, quarantine.counts(findings), self.options.size, self.options.geometry
        )

        where = good.set_index("image_id").loc[rows["image_id"], ["part", "row"]].to_numpy()

        def read(numbers: np.ndarray) -> pa.Table:
            return kept.take(where[numbers], PICTURES)

        finished = self._write(rows, read, contents, findings)
        _publish(finished, self.target)
        return IngestReport(self.target, contents, False, [f"ran on {how}", *self._notes(contents, rows)])

    def _executor(self, chosen: Executor | None) -> tuple[Executor, str]:
        if self.source.packed:
            return work.over_threads, "threads of this machine: the pictures are packed in Parquet files"
        return (chosen, "the executor given") if chosen else default_executor(str(self.source.path))

    def _chunks(self, image_ids: list[str]) -> list[Chunk]:
        files = self.source.images
        if self.source.packed:
            folder = self.folder / f"unpacked-{self.source.signature[:12]}"
            with progress.step("unpacking pictures", f"of {len(self.source.packed)} Parquet files"):
                files = huggingface.unpacked(files, self.source.packed, folder)
        images = [(image_id, files[image_id]) for image_id in image_ids]
        starts = range(0, len(images), CHUNK)
        return [
            Chunk(number, images[start : start + CHUNK], self.options.size, self.options.geometry)
            for number, start in enumerate(starts)
        ]

    def _identity(self) -> dict[str, object]:
        """Return what a part depends on. Pillow's version counts: another libjpeg may round pixels differently."""
        return {
            "signature": self.source.signature,
            "layout": self.source.layout,
            "size": self.options.size,
            "geometry": self.options.geometry,
            "encoding": pictures.ENCODING,
            "chunk": CHUNK,
            "columns": work.SCHEMA.names,
            "pillow": PIL.__version__,
            "readers": list(pictures.readers()),
        }

    def _judge(self, findings: list[Finding], good: int) -> None:
        """Refuse an archive of which too much was left out; the findings are written beside the target for the user."""
        total = len({*self.source.metadata["image_id"], *self.source.images, *(f.subject for f in findings)} - {""})
        out = quarantine.refusable(findings)
        if good and out <= self.options.max_quarantined * total:
            return
        where = self._write_quarantine(findings)
        reasons = ", ".join(f"{count} {reason}" for reason, count in quarantine.counts(findings).items()) or "no rows"
        reasons += f"; unknown are {names}" if (names := self._unknown_diagnoses()) else ""
        if not good:
            raise UserError(f"nothing usable in {self.source.path}: {reasons}; see {where}")
        raise UserError(
            f"{out} of {total} images quarantined ({reasons}), more than --max-quarantined "
            f"{self.options.max_quarantined:g}; see {where}, mend the archive or raise the limit"
        )

    def _unknown_diagnoses(self) -> str:
        dx = self.source.metadata["dx"]
        return self.source.classes.unknown(dx[(dx != "") & ~dx.isin(self.source.classes.codes)])

    def _notes(self, contents: dict[str, Any], rows: pd.DataFrame) -> list[str]:
        notes = [*contents["notes"], *splits.thin_folds(rows, self.source.classes)]
        if unknown := self._unknown_diagnoses():
            known = f"diagnoses that are none of the {len(self.source.classes)} classes"
            notes.append(f"{known}, their images are left out: {unknown}")
        if count := ungrouped(rows):
            notes.append(f"{count:,} images have no lesion and count as one each: {LEAKAGE}")
        if unopened := contents["quarantined"].get(UNOPENED):
            notes.append(f"{unopened} images could not be opened: once they can be, delete the table and make it again")
        if contents["same_pixels"]:
            notes.append(f"{len(contents['same_pixels'])} sets of images share their pixels: each kept, in one group")
        if rows[["width", "height"]].drop_duplicates().shape[0] > 1:
            notes.append("the images have different sizes, and no size is common to nine in ten: all accepted")
        return notes + list(card.contradictions(rows)) + list(card.odd_lesions(rows))

    def _refuse_untrainable(self, rows: pd.DataFrame, lesions: pd.Series) -> None:
        """Refuse what no fold could mend: a lesion of very many images, one class, hardly any lesions."""
        quarantine.refuse_large_lesion(rows["image_id"], lesions, self.options.max_lesion)
        training = rows["partition"] == "training"
        groups = lesions.where(lesions != "", rows["image_id"])[training]  # without a lesion each image is one
        if reason := splits.hopeless(rows["dx"][training].tolist(), groups.tolist()):
            raise UserError(
                f"no training could work on {self.source.path}: {reason}. To predict its images, give it as it is "
                "to jobs/predict.py: --images"
            )

    def _write_quarantine(self, findings: list[Finding]) -> str:
        where = storage.sibling(self.target, QUARANTINE)
        storage.write_bytes(where, quarantine.to_csv(findings))
        return where

    def _write(self, rows: pd.DataFrame, read: table.Read, contents: dict[str, Any], findings: list[Finding]) -> Path:
        """Write all files of the table into the work folder, the data card last."""
        folder = self.folder / "table"
        shutil.rmtree(folder, ignore_errors=True)  # of an ingest killed while it wrote
        folder.mkdir()
        stamp = {key: str(contents[key]) for key in ("schema_version", "fingerprint", "size")}
        table.write(folder, rows, read, stamp, self.options.size)
        storage.write_bytes(folder / QUARANTINE, quarantine.to_csv(findings))
        storage.write_bytes(folder / CARD, card.to_json(contents))
        return folder


def _sift(results: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Split the parts' rows into good images and findings."""
    failed = results[results["reason"].notna()]
    findings = [Finding(*values) for values in zip(*(failed[name] for name in Finding._fields), strict=True)]
    good = results[results["reason"].isna()].astype({"width": "int32", "height": "int32"})
    if len(good):
        findings += (odd := quarantine.check_sizes(good))
        good = good[~good["image_id"].isin([finding.image_id for finding in odd])]
    return good.sort_values("image_id", ignore_index=True), findings


def _rows(metadata: pd.DataFrame, good: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Make the rows of IMAGES without its pictures, sorted by image_id."""
    rows = metadata.merge(good[["image_id", "width", "height", "pixel_hash"]], on="image_id", validate="one_to_one")
    rows = rows.sort_values("image_id", ignore_index=True)
    rows["age"] = pd.to_numeric(rows["age"], errors="coerce").astype("float32")
    for name in ("sex", "localization", "dx_type"):
        rows[name] = rows[name].str.lower()
    for name in ("lesion_id", "sex", "localization", "dx_type"):
        rows[name] = rows[name].astype(object).where(rows[name] != "", None)
    rows["label"] = rows["dx"].map(classes.labels).astype("int32")
    rows["group_id"] = splits.group_ids(*(rows[name].tolist() for name in ("image_id", "lesion_id", "pixel_hash")))
    rows["fold"] = (
        splits.own_folds(rows)
        if (rows["fold"] != "").any()
        else splits.assign_folds(*(rows[name].tolist() for name in ("image_id", "group_id", "label", "partition")))
    )
    return rows[[name for name in SCHEMA.names if name not in PICTURES]]


def _publish(folder: Path, target: str) -> None:
    if not storage.is_remote(target):
        folder.rename(target)
        return
    for name in storage.listdir(target):
        if name.startswith("images-") and name.endswith(".parquet"):  # of a killed upload: readers would take them too
            storage.remove(storage.join(target, name))
    names = sorted(path.name for path in folder.iterdir())
    for name in sorted(names, key=lambda name: name == CARD):  # the data card last: it makes the table readable
        storage.write_bytes(storage.join(target, name), (folder / name).read_bytes())


def _reuse(source: Archive, target: str, options: _Options) -> IngestReport:
    result = storage.read_object(storage.join(target, CARD), "delete the folder and ingest again")
    wanted = (source.path.name, source.layout, options.size, options.geometry)
    origin = result.get("source", {})
    version, size, geometry = (result.get(key) for key in ("schema_version", "size", "geometry"))
    if version not in READABLE or (origin.get("file"), origin.get("layout"), size, geometry) != wanted:
        raise UserError(
            f"{target} already holds another table ({origin.get('file')}, {size} px, {geometry}, schema version "
            f"{version}); choose another --out, or delete it"
        )
    if origin.get("signature") != source.signature:
        raise UserError(
            f"{source.path} was changed or copied since {target} was made of it: its size, its time or its files "
            f"differ. To use that table as it is: --data {target}; to make it anew, delete it"
        )
    if not storage.is_remote(target):
        shutil.rmtree(work_path(target), ignore_errors=True)  # of an ingest killed right after its last step
    return IngestReport(target, result, True, [f"{target} is finished already: same archive, same options"])


def _refuse_occupied(target: str) -> None:
    path = Path(target)
    if not storage.is_remote(target) and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{target} exists and is no IMAGES table; choose another --out")


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{reason}; make room and start the same command: it goes on where it was"
    return reason
