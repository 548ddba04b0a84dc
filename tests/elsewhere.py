"""An archive of images of elsewhere, some of which the training table has too."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pandas as pd

from ham_ray.data.sample import write_sample

METADATA = "HAM10000_metadata.csv"
KNOWN = 4


def write_elsewhere(path: Path, trained: Path) -> Path:
    """Write it at `path`: drawn anew, and four images of the archive `trained`.

    Two of these have their own names, one another name and lesion, and one is new but said to be of a trained lesion.
    """
    pictures, rows = _read(write_sample(path.with_suffix(".drawn.zip"), lesions=80, seed=7, size=(80, 60)))
    rows["lesion_id"] = "ELSEWHERE_" + rows["lesion_id"]
    names = {name: name.replace("_0", "_9") for name in rows["image_id"]}
    rows["image_id"] = rows["image_id"].map(names)
    pictures = {names[name]: content for name, content in pictures.items()}
    others, known = _read(trained)
    rows.loc[0, "lesion_id"] = known["lesion_id"][9]
    chosen = known.iloc[:3].copy()
    pictures |= {name: others[name] for name in chosen["image_id"][:2]}
    pictures["SYNTHETIC_999999"] = others[chosen["image_id"][2]]
    chosen.loc[2, ["image_id", "lesion_id"]] = "SYNTHETIC_999999", "ELSEWHERE_COPY"
    with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(trained) as source:
        for name in source.namelist():
            if not name.endswith((".jpg", METADATA)):
                archive.writestr(name, source.read(name))
        for name, content in pictures.items():
            archive.writestr(f"HAM10000_images_part_1/{name}.jpg", content)
        archive.writestr(METADATA, pd.concat([rows, chosen]).to_csv(index=False))
    return path


def _read(path: Path) -> tuple[dict[str, bytes], pd.DataFrame]:
    with zipfile.ZipFile(path) as archive:
        pictures = {Path(name).stem: archive.read(name) for name in archive.namelist() if name.endswith(".jpg")}
        (metadata,) = (name for name in archive.namelist() if name.endswith(METADATA))
        return pictures, pd.read_csv(io.BytesIO(archive.read(metadata)))
