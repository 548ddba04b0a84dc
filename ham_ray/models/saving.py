"""Classifiers saved with the order of their classes: in the metadata of the `.keras` file, so that no copy loses it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

METADATA = "metadata.json"  # Keras writes its version there and reads nothing from it
CLASSES = "ham_ray_classes"


def save(classifier: keras.Model, path: Path, codes: Sequence[str]) -> None:
    """Save a classifier as a `.keras` file that names its classes in the order of its probabilities."""
    classifier.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[METADATA] = json.dumps({**json.loads(members[METADATA]), CLASSES: codes}).encode()
    with zipfile.ZipFile(path, "w") as archive:  # a zip's members cannot be replaced
        for name, content in members.items():
            archive.writestr(name, content)
