"""Names and numbers of the data that command lines and recipes share; importing them loads nothing else."""

from __future__ import annotations

FOLDS = 5
GEOMETRIES = ("crop", "squash")  # how an image of any shape becomes a square one
