"""An archive named as data is ingested on the way, and what was left out of it is said there too."""

from __future__ import annotations

import pytest

from ham_ray.data.prepare import prepare

pytestmark = pytest.mark.data


def test_what_an_archive_loses_on_the_way_into_a_training_is_said(builder, tmp_path, capsys):
    builder.rows.append(builder.rows[0] | {"image_id": "ISIC_0035068"})  # a row that nobody has the image of
    builder.files[".DS_Store"] = b"x"
    archive = builder.to_zip()
    images = prepare(str(archive), str(tmp_path / "runs"), 32)
    told = capsys.readouterr().out
    assert len(images.rows) == 42
    assert f"quarantined: 1 no image; see {images.uri}/quarantine.csv" in told
    assert "note: hidden files, folders and those of tools, not looked into: 1 (.DS_Store)" in told
