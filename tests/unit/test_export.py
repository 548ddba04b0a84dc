"""Export: what is written is read back and agrees, and what cannot be is told."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ham_ray.commands import exporting
from ham_ray.commands.exporting import FORMATS, TOLERANCE, export
from ham_ray.errors import UserError
from ham_ray.models.families import build
from ham_ray.models.weights import RANDOM
from ham_ray.recipe import baseline

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run") / "model.keras"
    build(baseline("simple_cnn"), 32, RANDOM).classifier().save(place)
    return place


@pytest.mark.parametrize("to", ["keras", "savedmodel", "tflite"])
def test_it_takes_bytes_and_agrees(model: Path, tmp_path: Path, to: str):
    done = export(str(model), to, str(tmp_path / "exported"), None)
    assert done.difference <= 1e-5 and done.images == 64 and "SYNTHETIC" in done.source
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = FORMATS[to].read(Path(done.place))(pixels)
    assert found.shape == (3, 7) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_few_images_are_compared_as_many_as_there_are(model: Path, tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    for name in "abc":
        Image.new("RGB", (60, 45), (90, 60, 50)).save(tmp_path / "pictures" / f"{name}.jpg")
    done = export(str(model), "keras", str(tmp_path / "m.keras"), str(tmp_path / "pictures"))
    assert done.images == 3 and done.source == str(tmp_path / "pictures")


@pytest.mark.skipif(importlib.util.find_spec("tf2onnx") is not None, reason="tf2onnx is installed")
def test_a_missing_converter_is_named_with_what_to_install(model: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--to onnx needs what is not installed: pip install tf2onnx"):
        export(str(model), "onnx", str(tmp_path / "m.onnx"), None)


def test_what_disagrees_is_not_left_behind(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    off = FORMATS["keras"].read
    wrong = exporting.Format(
        ".keras", FORMATS["keras"].write, lambda place: lambda x: off(place)(x) + 2 * TOLERANCE, {}
    )
    monkeypatch.setitem(exporting.FORMATS, "keras", wrong)
    with pytest.raises(UserError, match="differs from the original by 0.002 on 64 images"):
        export(str(model), "keras", str(tmp_path / "m.keras"), None)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told(model: Path, tmp_path: Path):
    with pytest.raises(UserError, match="unknown format 'torch'"):
        export(str(model), "torch", None, None)
    (tmp_path / "there").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        export(str(model), "keras", str(tmp_path / "there"), None)
