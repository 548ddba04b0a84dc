"""The classes of HAM10000, which most tests take."""

from __future__ import annotations

from ham_ray.data.datasets.ham10000 import CLASSES

DIAGNOSES, CODES, LABELS = CLASSES.diagnoses, CLASSES.codes, CLASSES.labels
PROBABILITIES, RAW = CLASSES.probabilities, CLASSES.raw
MELANOMA = LABELS["mel"]
ISIC = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]  # columns of ISIC 2018's table
