"""What a data set is: everything this project has to know of one, as an object that one file of `datasets/` makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from ham_ray.data.archives import Files, Member
from ham_ray.data.classes import Classes


@dataclass(frozen=True)
class Layout:
    """A form in which the data set is handed out.

    Args:
        expected: the metadata that it is recognised by, in words.
        recognise: whether the metadata is among the files of an archive.
        read: tables of `metadata.COLUMNS` and `file` (where the row stands), as strings; notes on them are appended.
        packed: whether the pictures are within Parquet files.
        asked: whether `recognise` holds for pictures without metadata too, so that only jobs that need labels ask it.
        index: pictures by image_id, where that is more than the name of a file.
    """

    expected: str
    recognise: Callable[[list[Member]], bool]
    read: Callable[[Files, list[Member], list[str]], list[pd.DataFrame]]
    packed: bool = False
    asked: bool = False
    index: Callable[[list[Member]], dict[str, list[Member]]] | None = None


@dataclass(frozen=True)
class Licence:
    """Under which terms images may be used, whom to name, and what to cite."""

    licence: str
    attribution: str
    citation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A published model's figures on a split that is not ours."""

    name: str
    accuracy: float
    macro_f1: float
    weighted_f1: float


@dataclass(frozen=True)
class Challenge:
    """The table of predictions that a challenge's scorer takes: `image`, then a column a class.

    Args:
        columns: in their order, the dx of each; None: a column of zeros, of a class that no model has.
    """

    name: str
    columns: Mapping[str, str | None]


class Look(NamedTuple):
    """How a class is drawn for the synthetic sample: its share of lesions, and means around which lesions vary."""

    share: float
    colour: tuple[float, ...]  # RGB, 0–255
    radius: float  # of the picture's height
    ragged: float  # relative unevenness of the border
    speckle: float  # contrast of fine texture, in grey levels
    patches: float  # contrast of coarse texture
    centre: float  # brightness of the centre against the border


@dataclass(frozen=True)
class Sample:
    """How the synthetic sample of a data set looks and is laid out.

    Args:
        looks: by dx, in the order of classes; all others look less clearly so the more they resemble `common`.
        common: the dx of the most frequent class, which takes the lesions that the others leave.
        picture: the path of a picture, of its number, image_id and dx.
        metadata: the files beside the pictures, by path, of rows lesion_id, image_id, dx, dx_type, age, sex and
            localization (strings).
    """

    looks: Mapping[str, Look]
    common: str
    picture: Callable[[int, str, str], str]
    metadata: Callable[[list[dict[str, str]]], dict[str, bytes]]


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Args:
        name: as the data card has it.
        title: in words.
        classes: in the order of labels; None: those that the archive names.
        layouts: by the name that `--layout` takes, the first that is recognised is read.
        licence: of its images.
        sample: its synthetic sample.
        has_lesions: whether a training image without lesion_id is an error; else it is a lesion by itself.
        own_folds: whether a column `fold` of the metadata is what the user wants.
        near_duplicates: pairs of images under different lesion ids that show the same lesion.
        unpublished: image ids that metadata names and nobody can have.
        challenge: the table that its scorer takes.
        published: figures of others, shown beside models of its images, and on which split they are.
        contains: whether all images are of this data set, by their ids.
        limits: sentences for model cards, on where its images come from.
        noise: spread of a score on one validation fold between trainings that differ by chance alone.
        archive_code: the class of an image (its id) by a name that ISIC's archive gives it, where that is more than
            the class of that name.
    """

    name: str
    title: str
    classes: Classes | None
    layouts: Mapping[str, Layout]
    licence: Licence
    sample: Sample
    has_lesions: bool = True
    own_folds: bool = False
    near_duplicates: tuple[tuple[str, str], ...] = ()
    unpublished: frozenset[str] = frozenset()
    challenge: Challenge | None = None
    published: tuple[Published, ...] = ()
    published_split: str = ""
    contains: Callable[[Iterable[str]], bool] = field(default=lambda image_ids: False)
    limits: tuple[str, ...] = ()
    noise: float | None = None
    archive_code: Callable[[str, str], str | None] | None = None
