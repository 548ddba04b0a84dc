"""What a prediction is bound to, and the calls that go with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from ham_ray.commands import predicting
from ham_ray.errors import UserError
from ham_ray.prediction.pipeline import Way
from ham_ray.prediction.saved import Saved

pytestmark = pytest.mark.unit


def identity(*places: Path, geometry: str = "crop") -> dict:
    members = {str(place): 1 / len(places) for place in places}
    options = SimpleNamespace(raw=False, format="parquet")
    gallery = SimpleNamespace(signature="s")
    return predicting._identity(options, [Saved("m", members, 32, None, None, {})], gallery, geometry, Way((members,)))


def test_each_member_of_an_ensemble_counts(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    (tmp_path / "copy").write_text("b")
    found = identity(tmp_path / "a", tmp_path / "b")
    assert len(found["models"][0]) == 2
    assert found != identity(tmp_path / "a", tmp_path / "c")
    assert found == identity(tmp_path / "copy", tmp_path / "a")  # wherever they lie


def test_other_pixels_of_the_same_files_are_other_predictions(tmp_path: Path):
    (tmp_path / "a").write_text("a")
    assert identity(tmp_path / "a") != identity(tmp_path / "a", geometry="squash")


@pytest.mark.parametrize("content", [b"[]", b"{", b"null", b"[" * 100_000])
def test_a_damaged_manifest_beside_finished_predictions_is_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "a.manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a.manifest.json is damaged \(.*\): delete it and a$"):
        predicting._same(str(tmp_path / "a.manifest.json"), {"images": "s"}, "a")


def test_a_manifest_of_something_else_is_refused_by_name(tmp_path: Path):
    (tmp_path / "a.manifest.json").write_text('{"identity": 3}')
    with pytest.raises(UserError, match="holds predictions with other images"):
        predicting._same(str(tmp_path / "a.manifest.json"), {"images": "s"}, "a")
