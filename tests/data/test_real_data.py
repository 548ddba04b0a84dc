"""The real HAM10000: HAM_RAY_TEST_DATA names the folder with `ham10000_300x225.zip`."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from ham_ray.data.images import open_images
from ham_ray.data.ingest import ingest

pytestmark = [pytest.mark.data, pytest.mark.real]
DATA = os.environ.get("HAM_RAY_TEST_DATA")


@pytest.mark.skipif(not DATA, reason="HAM_RAY_TEST_DATA is not set: the real HAM10000 is not at hand")
def test_all_of_ham10000(tmp_path):
    report = ingest(Path(str(DATA), "ham10000_300x225.zip"), tmp_path / "images", size=32)
    rows = open_images(report.uri).rows
    assert len(rows) == 10_015 and report.quarantined == {}
    assert rows["lesion_id"].nunique() == 7_470
    assert rows["group_id"].nunique() == report.card["groups"] == 7_452
    assert (rows.groupby("group_id")["fold"].nunique() == 1).all()
    assert rows["dx"].value_counts().to_dict() == {
        "nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115
    }  # fmt: skip
    assert report.card["missing"] == {"age": 57, "sex": 57, "localization": 234}
    assert report.card["same_pixels"] == [["ISIC_0024366", "ISIC_0029861"], ["ISIC_0024777", "ISIC_0029938"]]
    shares = pd.crosstab(rows["fold"], rows["dx"], normalize="index")
    assert shares.index.tolist() == [0, 1, 2, 3, 4]
    assert (shares.max() - shares.min()).max() < 0.01
    assert rows["fold"].value_counts().between(1_995, 2_011).all()
