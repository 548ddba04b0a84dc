"""HAM10000: 10,015 dermatoscopic images of seven diagnoses, with ISIC 2018 Task 3, whose training set it is.

Layouts:

- kaggle: `HAM10000_metadata.csv` beside image folders; the real zip holds each folder twice, once in lower case.
- dataverse: `HAM10000_metadata` (also `.tab`; comma or tab), with a column `dataset` that is never read: the source of
  an image gives its class away. The test set's `ISIC2018_Task3_Test_GroundTruth.csv` may stand beside it, in that form.
- isic2018: one-hot `ISIC2018_Task3_{Training,Validation,Test}_GroundTruth.csv` and `…_LesionGroupings.csv`.
- isic-cli: `metadata.csv` with isic_id, diagnosis_1 … diagnosis_5, lesion_id, as `isic image download` writes it.
- huggingface: Parquet files that hold the pictures themselves beside image_id, lesion_id and dx.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from ham_ray.data import huggingface, isic_cli
from ham_ray.data.archives import Files, Member
from ham_ray.data.classes import Classes, Diagnosis
from ham_ray.data.dataset import Challenge, Dataset, Layout, Licence, Look, Published, Sample
from ham_ray.data.metadata import REQUIRED, by_partition, hint, named, read_one_hot, read_table, require, to_csv
from ham_ray.errors import UserError

# HAM10000's paper says what a class holds: akiec Bowen's disease, bkl solar lentigines and lichen-planus-like
# keratoses, vasc angiokeratomas, pyogenic granulomas, hemorrhage.
CLASSES = Classes(
    (
        Diagnosis(
            "akiec",
            "actinic keratosis / intraepithelial carcinoma",
            True,
            """ak|actinic keratosis|actinic keratoses|solar keratosis|solar keratoses|solar or actinic keratosis
                |actinic keratosis intraepithelial carcinoma|actinic keratosis bowens disease|bowens disease
                |bowen disease
                |actinic keratosis bowens disease intraepithelial carcinoma|intraepithelial carcinoma
                |actinic keratoses and intraepithelial carcinoma|actinic keratoses and intraepithelial carcinomae
                |actinic keratoses and intraepithelial carcinoma bowens disease
                |actinic keratoses and intraepithelial carcinomae bowens disease
                |squamous cell carcinoma in situ|squamous cell carcinoma in situ bowens disease""",
        ),
        Diagnosis(
            "bcc",
            "basal cell carcinoma",
            True,
            "basal cell carcinoma|basal cell carcinomas|basal cell cancer|basalioma",
        ),
        Diagnosis(
            "bkl",
            "benign keratosis",
            False,
            """benign keratosis|benign keratoses|benign keratosis like lesion|benign keratosis like lesions
                |pigmented benign keratosis|seborrheic keratosis|seborrheic keratoses|seborrhoeic keratosis
                |seborrhoeic keratoses|solar lentigo|solar lentigines|lichenoid keratosis|lplk
                |lichen planus like keratosis|lichen planus like keratoses
                |benign keratosis solar lentigo seborrheic keratosis lichen planus like keratosis""",
        ),
        Diagnosis("df", "dermatofibroma", False, "dermatofibroma|dermatofibromas"),
        Diagnosis(
            "mel",
            "melanoma",
            True,
            """melanoma|melanomas|malignant melanoma|melanoma nos|melanoma in situ|melanoma invasive|invasive melanoma
                |melanoma metastasis|metastatic melanoma|superficial spreading melanoma|nodular melanoma|lentigo maligna
                |lentigo maligna melanoma|acral lentiginous melanoma|malignant melanocytic proliferations melanoma""",
        ),
        Diagnosis(
            "nv",
            "melanocytic nevus",
            False,
            """nevus|nevi|naevus|naevi|melanocytic nevus|melanocytic nevi|melanocytic naevus|melanocytic naevi|nevus nos
                |common nevus|mole|moles|blue nevus|spitz nevus|reed nevus|halo nevus|congenital nevus|compound nevus
                |junctional nevus|dermal nevus|intradermal nevus|dysplastic nevus|atypical nevus|clark nevus""",
        ),
        Diagnosis(
            "vasc",
            "vascular lesion",
            False,
            """vascular lesion|vascular lesions|vascular skin lesion|vascular skin lesions|vascular|angioma|angiomas
                |cherry angioma|hemangioma|haemangioma|angiokeratoma|angiokeratomas|pyogenic granuloma
                |pyogenic granulomas
                |hemorrhage|haemorrhage|hemorrhagic lesions|benign soft tissue proliferations vascular""",
        ),
    ),
    focus="mel",
)

# Pairs of images under different lesion ids that show the same lesion. Source: `newly_discovered_duplicates.csv` of
# Abhishek, Jain, Hamarneh, "Investigating the quality of DermaMNIST and Fitzpatrick17k", Scientific Data 12:196 (2025).
_NEAR_DUPLICATES = tuple(
    (f"ISIC_{first}", f"ISIC_{second}")
    for first, second in (
        ("0033481", "0033421"),
        ("0033556", "0032634"),
        ("0029152", "0033173"),
        ("0029036", "0027027"),
        ("0027820", "0028209"),
        ("0027689", "0032647"),
        ("0030906", "0024879"),
        ("0033391", "0034186"),
        ("0025226", "0030074"),
        ("0026087", "0025664"),
        ("0024736", "0029748"),
        ("0024770", "0027811"),
        ("0027162", "0029061"),
        ("0024602", "0032283"),
        ("0029625", "0024629"),
        ("0030000", "0031392"),
        ("0024437", "0031299"),
        ("0033374", "0033417"),
    )
)


_LOOKS = {
    "akiec": Look(0.031, (190, 110, 95), 0.28, 0.22, 20, 12, 10),
    "bcc": Look(0.044, (200, 130, 130), 0.24, 0.12, 8, 22, 25),
    "bkl": Look(0.097, (150, 110, 80), 0.30, 0.10, 24, 10, 0),
    "df": Look(0.010, (165, 115, 95), 0.20, 0.06, 8, 6, 55),
    "mel": Look(0.082, (95, 65, 60), 0.34, 0.28, 14, 34, -10),
    "nv": Look(0.723, (130, 85, 65), 0.24, 0.06, 10, 8, -15),
    "vasc": Look(0.013, (165, 40, 60), 0.20, 0.10, 6, 16, -20),
}
_NUMBERS = range(24306, 34321)  # of its images, ISIC_0024306 to ISIC_0034320
_FIRST, _LAST_TRAINING, _LAST = "ISIC_0024306", "ISIC_0034320", "ISIC_0036064"  # with the official validation and test
# There ISIC's archive calls Bowen's disease so (197 of 327 akiec); among other images that name is another class.
_BOWEN = "squamous cell carcinoma, nos"

_METADATA = re.compile(r"HAM10000_metadata(\.csv|\.tab|\.tsv|\.txt)?", re.IGNORECASE)
_GROUND_TRUTH = re.compile(r"ISIC2018_Task3_(Training|Validation|Test)_GroundTruth\.csv", re.IGNORECASE)
_GROUPINGS = re.compile(r"ISIC2018_Task3_(Training|Validation|Test)_LesionGroupings\.csv", re.IGNORECASE)
_SPLIT = re.compile(r"(?:^|/)(train|validation|val|test)\b", re.IGNORECASE)


def contains(image_ids: Iterable[str]) -> bool:
    """Say whether all images are of HAM10000, by their names."""
    numbers = (image_id.removeprefix("ISIC_") for image_id in image_ids)
    return all(number.isdigit() and len(number) == 7 and int(number) in _NUMBERS for number in numbers)


def archive_code(image_id: str, text: str) -> str | None:
    """Return the class of an image by a name that ISIC's archive gives it; None: it is of no class."""
    bowen = text.lower() == _BOWEN and _FIRST <= image_id <= _LAST
    return "akiec" if bowen else CLASSES.code_of(text)


def _own_layout(members: list[Member]) -> str | None:
    """Tell Kaggle's layout from Dataverse's by the first file named as HAM10000's metadata; None: it is neither."""
    files = named(members, _METADATA)
    columns = set(read_table(files[0]).columns) if files else set()
    if not files or isic_cli.is_export(columns):
        return None
    return "kaggle" if files[0].name.lower().endswith(".csv") and "dataset" not in columns else "dataverse"


def _read_own(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    metadata = named(members, _METADATA)
    if not metadata:
        raise UserError(f"no HAM10000_metadata in {files.path}; {hint(members)}")
    tables = [_own_table(metadata[0], "training", notes)]
    for truth in named(members, _GROUND_TRUTH)[:1]:
        if "dx" in read_table(truth):
            tables.append(_own_table(truth, "test", notes))
    return tables


def _own_table(member: Member, partition: str, notes: list[str]) -> pd.DataFrame:
    table = read_table(member)
    require(table, member, REQUIRED)
    absent = [name for name in ("age", "sex", "localization", "dx_type") if name not in table]
    if absent:
        notes.append(f"{member.label} has no column {', '.join(absent)}: left empty")
    return table.assign(partition=partition, file=member.label)


def _read_isic2018(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    truths = by_partition(reversed(named(members, _GROUND_TRUTH)), _GROUND_TRUTH)
    if not truths:
        raise UserError(f"no ISIC2018_Task3_*_GroundTruth.csv in {files.path}; {hint(members)}")
    groupings = by_partition(named(members, _GROUPINGS), _GROUPINGS)
    if "training" in truths and "training" not in groupings:
        raise UserError(
            f"{files.path} has no ISIC2018_Task3_Training_LesionGroupings.csv: without it, images of one lesion would "
            "be in training and test at once; download it from the ISIC 2018 challenge's data page"
        )
    notes.append("ISIC 2018 gives no age, sex or localization: left empty")
    return [_with_lesions(truths[name], name, groupings.get(name)) for name in sorted(truths)]


def _with_lesions(truth: Member, partition: str, groupings: Member | None) -> pd.DataFrame:
    rows = read_one_hot(truth, partition, CLASSES, CLASSES.codes)
    if groupings is None:
        return rows
    lesions = read_table(groupings)
    require(lesions, groupings, ("image", "lesion_id"))
    columns = {"image": "image_id", "diagnosis_confirm_type": "dx_type"}
    lesions = lesions.drop_duplicates("image").rename(columns=columns)
    if "dx_type" in lesions:
        lesions["dx_type"] = lesions["dx_type"].map(isic_cli.confirmation)
    return rows.merge(lesions, on="image_id", how="left")


def _read_isic_cli(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    member = isic_cli.metadata_file(members)
    if member is None:
        raise UserError(f"no metadata.csv with isic_id and diagnosis_1 in {files.path}; {hint(members)}")
    table = isic_cli.in_columns(read_table(member), archive_code, notes)
    require(table, member, REQUIRED)
    if official := table["image_id"].between(_LAST_TRAINING, _LAST, inclusive="right").sum():
        notes.append(
            f"{official:,} images are of ISIC 2018's official validation and test sets and are treated as any other: "
            "a model trained on them cannot be compared on these sets"
        )
    return [table.assign(partition="training", file=member.label)]


def _seems_packed(members: list[Member]) -> bool:
    try:
        return any(map(huggingface.is_packed, members))
    except UserError:
        return False  # pictures beside a torn Parquet file are pictures still


def _read_huggingface(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    packed = [member for member in members if huggingface.is_packed(member)]
    if not packed:
        raise UserError(f"no Parquet file with image and dx in {files.path}; {hint(members)}")
    table = huggingface.read_metadata(packed)
    require(table, packed[0], REQUIRED)
    splits = sorted({match[1].lower() for member in packed if (match := _SPLIT.search(member.label))})
    if splits:
        notes.append(f"the splits of the files ({', '.join(splits)}) are not used: folds are assigned by lesion")
    return [table.assign(partition="training")]


DATASET = Dataset(
    name="ham10000",
    title="HAM10000",
    classes=CLASSES,
    layouts={
        "kaggle": Layout("HAM10000_metadata", lambda members: _own_layout(members) == "kaggle", _read_own),
        "dataverse": Layout("", lambda members: _own_layout(members) == "dataverse", _read_own),
        "isic2018": Layout(
            "ISIC2018_Task3_*_GroundTruth.csv", lambda members: bool(named(members, _GROUND_TRUTH)), _read_isic2018
        ),
        "isic-cli": Layout(
            "isic-cli's metadata.csv (isic_id, diagnosis_1, …)",
            lambda members: isic_cli.metadata_file(members) is not None,
            _read_isic_cli,
        ),
        "huggingface": Layout("Parquet with image and dx", _seems_packed, _read_huggingface, packed=True),
    },
    licence=Licence(
        "CC BY-NC 4.0: non-commercial use, with attribution; holds for models trained on it as well",
        "HAM10000 Dataset: (c) by ViDIR Group, Department of Dermatology, Medical University of Vienna; "
        "https://doi.org/10.1038/sdata.2018.161",
        (
            "Tschandl, Rosendahl, Kittler: The HAM10000 dataset, a large collection of multi-source dermatoscopic "
            "images of common pigmented skin lesions. Scientific Data 5:180161 (2018)",
            "Codella et al.: Skin Lesion Analysis Toward Melanoma Detection 2018. arXiv:1902.03368 (2019)",
        ),
    ),
    sample=Sample(
        looks=_LOOKS,
        common="nv",
        picture=lambda number, image_id, dx: f"HAM10000_images_part_{1 + number % 2}/{image_id}.jpg",
        metadata=lambda rows: {"HAM10000_metadata.csv": to_csv(rows)},
    ),
    near_duplicates=_NEAR_DUPLICATES,
    # The test set's control image has a row in the ground truth and was never published; its scorer gives it weight 0.
    unpublished=frozenset({"ISIC_0035068"}),
    challenge=Challenge(
        "ISIC 2018 Task 3", {dx.upper(): dx for dx in ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")}
    ),
    published=(
        Published("original: simple CNN", 0.48, 0.30, 0.54),
        Published("original: ResNet50 frozen", 0.67, 0.12, 0.54),
        Published("original: ResNet50 fine-tuned, class weights", 0.66, 0.29, 0.66),
    ),
    published_split="its own, not stated: not comparable",
    contains=contains,
    limits=(
        "The images of HAM10000, which models of this project learn from, come from two clinics (Vienna and "
        "Queensland) and mostly from light skin.",
    ),
    noise=0.04,  # one validation fold: 2,003 images, 23 of the rarest class
    archive_code=archive_code,
)
