"""ISIC 2019: 25,331 dermatoscopic images of eight diagnoses, of HAM10000, BCN20000 and MSK.

Layout isic2019: one-hot `ISIC_2019_{Training,Test}_GroundTruth.csv` and `…_Metadata.csv`, which names the lesion of
most training images; one without counts as a lesion by itself. Images of no class (UNK, in the test set) are left out.
"""

from __future__ import annotations

import re

import pandas as pd

from ham_ray.data.archives import Files, Member
from ham_ray.data.classes import Classes, Diagnosis
from ham_ray.data.dataset import Challenge, Dataset, Layout, Licence, Look, Sample
from ham_ray.data.datasets import ham10000
from ham_ray.data.metadata import NO_CLASS, by_partition, hint, named, read_one_hot, read_table, require, to_csv
from ham_ray.errors import UserError

_SHARED = {diagnosis.dx: diagnosis for diagnosis in ham10000.CLASSES.diagnoses}
CLASSES = Classes(
    (
        *(_SHARED[dx] for dx in ("mel", "nv", "bcc")),
        Diagnosis("ak", "actinic keratosis", True, "actinic keratoses|solar keratosis|solar or actinic keratosis"),
        *(_SHARED[dx] for dx in ("bkl", "df", "vasc")),
        Diagnosis(
            "scc",
            "squamous cell carcinoma",
            True,
            "squamous cell carcinoma nos|squamous cell carcinoma invasive|invasive squamous cell carcinoma",
        ),
    ),
    focus="mel",
)
_GROUND_TRUTH = re.compile(r"ISIC_2019_(Training|Test)_GroundTruth\.csv", re.IGNORECASE)
_METADATA = re.compile(r"ISIC_2019_(Training|Test)_Metadata\.csv", re.IGNORECASE)
_COLUMNS = {"image": "image_id", "age_approx": "age", "anatom_site_general": "localization"}
_UNKNOWN = "unk"


def _read(files: Files, members: list[Member], notes: list[str]) -> list[pd.DataFrame]:
    truths = by_partition(reversed(named(members, _GROUND_TRUTH)), _GROUND_TRUTH)
    metadata = by_partition(reversed(named(members, _METADATA)), _METADATA)
    if not truths:
        raise UserError(f"no ISIC_2019_*_GroundTruth.csv in {files.path}; {hint(members)}")
    if "training" in truths and "training" not in metadata:
        raise UserError(
            f"{files.path} has no ISIC_2019_Training_Metadata.csv: without it, images of one lesion would be in "
            "training and test at once; download it from the ISIC 2019 challenge's data page"
        )
    return [_rows(truths[name], name, metadata.get(name)) for name in sorted(truths)]


def _rows(truth: Member, partition: str, metadata: Member | None) -> pd.DataFrame:
    rows = read_one_hot(truth, partition, CLASSES, CLASSES.codes)
    rows["dx"] = rows["dx"].replace(_UNKNOWN, NO_CLASS)
    if metadata is None:
        return rows
    facts = read_table(metadata)
    require(facts, metadata, ("image", *(("lesion_id",) if partition == "training" else ())))
    return rows.merge(facts.drop_duplicates("image").rename(columns=_COLUMNS), on="image_id", how="left")


def _sample_metadata(rows: list[dict[str, str]]) -> dict[str, bytes]:
    """Write metadata as the challenge lays it out; one lesion in ten has no id, as some of its images have none."""
    columns = [dx.upper() for dx in (*CLASSES.codes, _UNKNOWN)]
    truth = [{"image": row["image_id"]} | {name: f"{float(name.lower() == row['dx'])}" for name in columns}
             for row in rows]  # fmt: skip
    facts = [
        {
            "image": row["image_id"],
            "age_approx": row["age"],
            "anatom_site_general": row["localization"],
            "lesion_id": "" if row["lesion_id"].endswith("0") else row["lesion_id"],
            "sex": row["sex"],
        }
        for row in rows
    ]
    return {"ISIC_2019_Training_GroundTruth.csv": to_csv(truth), "ISIC_2019_Training_Metadata.csv": to_csv(facts)}


_LOOKS = ham10000.DATASET.sample.looks
DATASET = Dataset(
    name="isic2019",
    title="ISIC 2019",
    classes=CLASSES,
    layouts={
        "isic2019": Layout("ISIC_2019_*_GroundTruth.csv", lambda members: bool(named(members, _GROUND_TRUTH)), _read)
    },
    licence=Licence(
        "CC BY-NC 4.0: non-commercial use, with attribution; holds for models trained on it as well",
        "HAM10000 Dataset: (c) by ViDIR Group, Department of Dermatology, Medical University of Vienna; BCN_20000 "
        "Dataset: (c) Department of Dermatology, Hospital Clínic de Barcelona; MSK Dataset: (c) Anonymous; "
        "https://challenge.isic-archive.com/data/#2019",
        (
            "Tschandl, Rosendahl, Kittler: The HAM10000 dataset, a large collection of multi-source dermatoscopic "
            "images of common pigmented skin lesions. Scientific Data 5:180161 (2018)",
            "Codella et al.: Skin Lesion Analysis Toward Melanoma Detection: ISBI 2017. arXiv:1710.05006 (2017)",
            "Combalia et al.: BCN20000: Dermoscopic Lesions in the Wild. arXiv:1908.02288 (2019)",
        ),
    ),
    sample=Sample(
        looks={dx: _LOOKS["akiec" if dx == "ak" else dx] for dx in CLASSES.codes if dx != "scc"}
        | {"scc": Look(0.025, (205, 90, 85), 0.32, 0.18, 26, 20, 30)},
        common="nv",
        picture=lambda number, image_id, dx: f"ISIC_2019_Training_Input/{image_id}.jpg",
        metadata=_sample_metadata,
    ),
    has_lesions=False,
    limits=(
        "The images of ISIC 2019 come from clinics in Vienna, Queensland, Barcelona and New York, and mostly from "
        "light skin.",
    ),
    challenge=Challenge("ISIC 2019", {dx.upper(): dx for dx in CLASSES.codes} | {"UNK": None}),
)
