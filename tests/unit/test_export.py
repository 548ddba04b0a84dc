"""Export: what is written is read back and agrees, and what cannot be is told."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ham_ray.errors import UserError
from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM
from ham_ray.recipe import baseline
from ham_ray.workflows.export import Options
from ham_ray.workflows.steps import exporting
from ham_ray.workflows.steps.exporting import FORMATS, TOLERANCE, Exported

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run") / "model.keras"
    build(baseline("simple_cnn"), 32, RANDOM, 7).classifier().save(place)
    return place


def export(model: Path, to: str, out: Path | None, images: Path | None = None) -> Exported:
    return exporting.export(Options(model=str(model), to=to, out=out and str(out), images=images and str(images)))


@pytest.mark.parametrize("to", ["keras", "savedmodel", "tflite"])
def test_it_takes_bytes_and_agrees(model: Path, tmp_path: Path, to: str):
    done = export(model, to, tmp_path / "exported")
    assert done.difference <= 1e-5 and done.images == 64 and "SYNTHETIC" in done.source
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = FORMATS[to].read(Path(done.place))(pixels)
    assert found.shape == (3, 7) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    if to == "keras":
        with zipfile.ZipFile(done.place) as archive:
            assert json.loads(archive.read("metadata.json"))["ham_ray_classes"][4:6] == ["mel", "nv"]


def test_few_images_are_compared_as_many_as_there_are(model: Path, tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    for name in "abc":
        Image.new("RGB", (60, 45), (90, 60, 50)).save(tmp_path / "pictures" / f"{name}.jpg")
    done = export(model, "keras", tmp_path / "m.keras", tmp_path / "pictures")
    assert done.images == 3 and done.source == str(tmp_path / "pictures")


@pytest.mark.skipif(importlib.util.find_spec("tf2onnx") is not None, reason="tf2onnx is installed")
def test_a_missing_converter_is_named_with_what_to_install(model: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--to onnx needs what is not installed: pip install tf2onnx"):
        export(model, "onnx", tmp_path / "m.onnx")


def test_what_disagrees_is_not_left_behind(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    off = FORMATS["keras"].read
    wrong = exporting.Format(FORMATS["keras"].write, lambda place: lambda x: off(place)(x) + 2 * TOLERANCE)
    monkeypatch.setitem(exporting.FORMATS, "keras", wrong)
    with pytest.raises(UserError, match="differs from the original by 0.002 on 64 images"):
        export(model, "keras", tmp_path / "m.keras")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told(model: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--to torch: choose keras, savedmodel, tflite or onnx"):
        export(model, "torch", None)
    (tmp_path / "there").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        export(model, "keras", tmp_path / "there")
