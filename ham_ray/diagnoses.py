"""The seven diagnoses of HAM10000 as data. Their order here is the order of every label and probability column."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
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

# What else archives and people call them, as `_words` has it. HAM10000's paper says what a class holds: akiec Bowen's
# disease, bkl solar lentigines and lichen-planus-like keratoses, vasc angiokeratomas, pyogenic granulomas, hemorrhage.
_NAMES = {
    "akiec": """ak|actinic keratosis|actinic keratoses|solar keratosis|solar keratoses|solar or actinic keratosis
        |actinic keratosis intraepithelial carcinoma|actinic keratosis bowens disease|bowens disease|bowen disease
        |actinic keratosis bowens disease intraepithelial carcinoma|intraepithelial carcinoma
        |actinic keratoses and intraepithelial carcinoma|actinic keratoses and intraepithelial carcinomae
        |actinic keratoses and intraepithelial carcinoma bowens disease
        |actinic keratoses and intraepithelial carcinomae bowens disease
        |squamous cell carcinoma in situ|squamous cell carcinoma in situ bowens disease""",
    "bcc": "basal cell carcinoma|basal cell carcinomas|basal cell cancer|basalioma",
    "bkl": """benign keratosis|benign keratoses|benign keratosis like lesion|benign keratosis like lesions
        |pigmented benign keratosis|seborrheic keratosis|seborrheic keratoses|seborrhoeic keratosis
        |seborrhoeic keratoses|solar lentigo|solar lentigines|lichenoid keratosis|lplk
        |lichen planus like keratosis|lichen planus like keratoses
        |benign keratosis solar lentigo seborrheic keratosis lichen planus like keratosis""",
    "df": "dermatofibroma|dermatofibromas",
    "mel": """melanoma|melanomas|malignant melanoma|melanoma nos|melanoma in situ|melanoma invasive|invasive melanoma
        |melanoma metastasis|metastatic melanoma|superficial spreading melanoma|nodular melanoma|lentigo maligna
        |lentigo maligna melanoma|acral lentiginous melanoma|malignant melanocytic proliferations melanoma""",
    "nv": """nevus|nevi|naevus|naevi|melanocytic nevus|melanocytic nevi|melanocytic naevus|melanocytic naevi|nevus nos
        |common nevus|mole|moles|blue nevus|spitz nevus|reed nevus|halo nevus|congenital nevus|compound nevus
        |junctional nevus|dermal nevus|intradermal nevus|dysplastic nevus|atypical nevus|clark nevus""",
    "vasc": """vascular lesion|vascular lesions|vascular skin lesion|vascular skin lesions|vascular|angioma|angiomas
        |cherry angioma|hemangioma|haemangioma|angiokeratoma|angiokeratomas|pyogenic granuloma|pyogenic granulomas
        |hemorrhage|haemorrhage|hemorrhagic lesions|benign soft tissue proliferations vascular""",
}
_CODE_OF = {name.strip(): dx for dx, names in _NAMES.items() for name in names.split("|")} | {dx: dx for dx in CODES}


def code_of(text: str) -> str | None:
    """The code of a diagnosis by its code, English name, or ISIC's or Hugging Face's spelling; None for any other."""
    return _CODE_OF.get(_words(text))


def nearest(text: str) -> str | None:
    """The known name most like a diagnosis that is none of the seven, with its code; None where none is like it."""
    found = difflib.get_close_matches(_words(text), _CODE_OF, n=1, cutoff=0.6)
    if not found:
        return None
    return found[0] if found[0] in CODES else f"{found[0]} ({_CODE_OF[found[0]]})"


def listed(texts: Iterable[str], most: int = 8) -> str:
    """Names that are none of the seven with their counts and what is nearest; "" where there are none."""
    said = []
    for text, count in Counter(texts).most_common():
        near = nearest(text)
        said.append(f"{text!r} ({count:,}{f', nearest is {near}' if near else ''})")
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")


def _words(text: str) -> str:
    """Lower case, without apostrophes, one blank between words: `Bowen's_disease` and `bowens disease` are one."""
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’`]", "", text.casefold())).split())
