"""The seven diagnoses of HAM10000 as data. Their order here is the order of every label and probability column."""

from __future__ import annotations

from typing import NamedTuple


class Diagnosis(NamedTuple):
    """One class: `dx` as HAM10000 writes it, its name, whether it is malignant (or its precursor), ISIC's column."""

    dx: str
    name: str
    malignant: bool
    isic: str


DIAGNOSES = (
    Diagnosis("akiec", "actinic keratosis / intraepithelial carcinoma", True, "AKIEC"),
    Diagnosis("bcc", "basal cell carcinoma", True, "BCC"),
    Diagnosis("bkl", "benign keratosis", False, "BKL"),
    Diagnosis("df", "dermatofibroma", False, "DF"),
    Diagnosis("mel", "melanoma", True, "MEL"),
    Diagnosis("nv", "melanocytic nevus", False, "NV"),
    Diagnosis("vasc", "vascular lesion", False, "VASC"),
)
CODES = tuple(d.dx for d in DIAGNOSES)
LABELS = {dx: label for label, dx in enumerate(CODES)}
PROBABILITIES = tuple(f"p_{dx}" for dx in CODES)
