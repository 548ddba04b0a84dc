"""Ingest by Ray tasks, as on a cluster of several nodes, gives the table that one machine's threads give."""

from __future__ import annotations

from pathlib import Path

import pytest

from ham_ray.data import chunks
from ham_ray.data.images import Images
from ham_ray.data.ingest import ingest
from ham_ray.data.sample import write_sample

pytestmark = pytest.mark.ray


def test_ray_tasks_make_the_same_table(cluster: str, images: Images, tmp_path: Path):
    archive = write_sample(tmp_path / "synthetic.zip", size=(80, 60))
    report = ingest(archive, tmp_path / "images", size=32, executor=chunks.over_ray)
    assert report.card["fingerprint"] == images.fingerprint
    assert report.card["quarantined"] == {}
    ours, theirs = (sorted(Path(place).glob("*.parquet")) for place in (report.uri, images.uri))
    assert [p.read_bytes() for p in ours] == [p.read_bytes() for p in theirs]
