"""Names and numbers of the data that command lines and recipes share; importing them loads nothing else."""

from __future__ import annotations

FOLDS = 5
GEOMETRIES = ("crop", "squash")  # how an image of any shape becomes a square one
# Each data set by its module in `datasets/`, with the layouts of its archives.
DATASETS = {
    "ham10000": ("kaggle", "dataverse", "isic2018", "isic-cli", "huggingface"),
    "isic2019": ("isic2019",),
    "folder": ("labels", "folders"),
}
LAYOUTS = tuple(layout for layouts in DATASETS.values() for layout in layouts)
