"""jobs/predict.py as a person uses it: pictures of all kinds, killed and started again, several models, a table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from ham10000 import CODES, PROBABILITIES, RAW
from PIL import Image

from ham_ray.data.images import Images
from ham_ray.data.pictures import resized
from ham_ray.errors import UserError
from ham_ray.evaluation import predictions
from ham_ray.evaluation.calibration import Calibration
from ham_ray.inference import pipeline
from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM
from ham_ray.recipe import baseline
from ham_ray.workflows.predict import Options
from ham_ray.workflows.steps import predicting

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
FITTED = Calibration(0.5, 0.3, (0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.1), {"specificity_90": 0.14})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def model(folder: Path, images: Images) -> Path:
    """A run with an untrained model that was, so it says, trained on the sample's folds 2 to 4."""
    place = folder / "run"
    place.mkdir()
    recipe = baseline("simple_cnn")
    build(recipe, 32, RANDOM, 7).classifier().save(place / "model.keras")
    (place / "calibration.json").write_text(json.dumps(vars(FITTED)))
    (place / "data_card.json").write_text(json.dumps({"geometry": "crop"}))
    names = {0: "test", 1: "validation"}
    splits = images.rows[["image_id", "group_id"]].assign(split=[names.get(f, "training") for f in images.rows["fold"]])
    splits.to_parquet(place / "split.parquet")
    return place


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Path:
    """70 pictures and two files that are none."""
    place = folder / "pictures"
    place.mkdir()
    rng = np.random.default_rng(0)
    for number in range(70):
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        small.resize((60, 45), Image.Resampling.BICUBIC).save(place / f"p{number:02d}.png")
    (place / "torn.png").write_bytes((place / "p00.png").read_bytes()[:400])
    (place / "words.jpg").write_bytes(b"no picture")
    return place


def options(model: Path, place: str | Path, out: Path, **changes: Any) -> Options:
    chosen = Options(models=[str(model)], images=str(place), out=str(out), batch_size=16, precision="float32")
    return replace(chosen, **changes)


def expected(model: Path, pictures: Path) -> np.ndarray:
    """What the model gives for each picture by itself."""
    files = sorted(pictures.glob("p*.png"))
    pixels = np.stack([np.asarray(resized(path.read_bytes(), 32, "crop")) for path in files])
    return np.asarray(keras.models.load_model(model / "model.keras")(pixels))


def test_pictures_are_predicted_and_calibrated_and_the_bad_ones_listed(cluster, model, pictures, folder, monkeypatch):
    monkeypatch.setattr("ham_ray.inference.pipeline.CHUNK_IMAGES", 20)
    manifest = predicting.run(options(model, pictures, folder / "a.parquet"))
    found = predictions.read(str(folder / "a.parquet"))
    assert found["image_id"].tolist() == [f"p{number:02d}" for number in range(70)]
    assert found["y_true"].isna().all() and set(found["split"]) == {"new"}
    given = expected(model, pictures)
    np.testing.assert_allclose(found[RAW], given, atol=1e-6)
    np.testing.assert_allclose(found[list(PROBABILITIES)], FITTED.apply(given), atol=1e-6)
    assert (found["mel_specificity_90"] == (found["p_mel"] >= 0.14)).all()
    assert manifest["quarantined"] == {"truncated": 1, "not an image": 1} and manifest["predicted"] == 70
    listed = pd.read_csv(folder / "a.parquet.quarantine.csv")
    assert listed["file"].tolist() == ["torn.png", "words.jpg"]
    assert not (folder / "a.parquet.partial").exists()


@pytest.fixture(scope="module")
def larger(folder: Path) -> Path:
    """A run with an untrained model of images of 48 pixels."""
    (folder / "larger").mkdir()
    build(baseline("simple_cnn"), 48, RANDOM, 7).classifier().save(folder / "larger" / "model.keras")
    return folder / "larger"


def test_models_of_different_sizes_each_get_their_own_pixels(cluster, model, larger, pictures, folder, capsys):
    chosen = options(model, pictures, folder / "sizes.parquet", models=[str(model), str(larger)], raw=True)
    predicting.run(chosen)
    assert "32 px and 48 px (crop)" in capsys.readouterr().out
    found = predictions.read(str(folder / "sizes.parquet"))
    pixels = np.stack([np.asarray(resized(path.read_bytes(), 48, "crop")) for path in sorted(pictures.glob("p*.png"))])
    at_48 = np.asarray(keras.models.load_model(larger / "model.keras")(pixels))
    np.testing.assert_allclose(found[RAW], (expected(model, pictures) + at_48) / 2, atol=1e-6)


def test_a_table_of_one_size_is_refused_for_models_of_two(cluster, model, larger, folder, images: Images):
    chosen = options(model, images.uri, folder / "table.parquet", models=[str(model), str(larger)])
    with pytest.raises(UserError, match="a table of 32 px .*, the model takes 48 px"):
        predicting.run(chosen)


def test_a_finished_prediction_is_not_made_again_and_another_one_is_refused(cluster, model, pictures, folder, capsys):
    before = (folder / "a.parquet").stat().st_mtime_ns
    predicting.run(options(model, pictures, folder / "a.parquet"))
    assert "finished already" in capsys.readouterr().out and (folder / "a.parquet").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds predictions with other views"):
        predicting.run(options(model, pictures, folder / "a.parquet", tta=True))


def test_several_models_are_averaged_each_with_its_calibration(cluster, model, pictures, folder):
    alone = folder / "alone.keras"
    alone.write_bytes((model / "model.keras").read_bytes())
    chosen = options(model, pictures, folder / "b.csv", models=[str(model), str(alone)], format="csv")
    predicting.run(chosen)
    found = pd.read_csv(folder / "b.csv")
    given = expected(model, pictures)
    np.testing.assert_allclose(found[list(PROBABILITIES)], (FITTED.apply(given) + given) / 2, atol=1e-6)
    np.testing.assert_allclose(found[RAW], given, atol=1e-6)


def test_a_table_keeps_its_labels_and_says_what_the_model_has_seen(cluster, model, images: Images, folder):
    chosen = options(model, images.uri, folder / "c.csv", format="isic", raw=True, tta=True)
    manifest = predicting.run(chosen)
    assert manifest["predicted"] == manifest["labelled"] == len(images.rows)
    assert manifest["splits"] == {
        "training": len(images.fold(2, 3, 4)), "validation": len(images.fold(1)), "test": len(images.fold(0)),
    }  # fmt: skip
    found = pd.read_csv(folder / "c.csv")
    assert found.columns.tolist()[0] == "image" and {*found.columns[1:]} == {code.upper() for code in CODES}
    assert found["image"].tolist() == sorted(images.rows["image_id"])


def test_nothing_readable_is_an_error(cluster, model, folder):
    place = folder / "nothing"
    place.mkdir()
    (place / "a.jpg").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"not one of the 1 images .*read: 1 not an image; see .*d.parquet.quarantine.csv"
    ):
        predicting.run(options(model, place, folder / "d.parquet"))
    assert "not an image" in (folder / "d.parquet.quarantine.csv").read_text()
    assert not (folder / "d.parquet").exists()


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_whatever_lies_in_the_folder_is_predicted_or_counted(cluster, model, pictures, folder, capsys, form):
    """8 HEIC and a JPG: "1 images predicted", and nothing listed; a name that is not UTF-8: a traceback."""
    place = folder / "any"
    if not place.exists():
        place.mkdir()
        for number in range(4):
            (place / f"p{number}.CR2").write_bytes(b"II*\0\x10\0\0\0CR\x02\0")
        (place / "a.jpg").write_bytes((pictures / "p00.png").read_bytes())
        Path(os.fsdecode(os.fsencode(place) + b"/caf\xe9.png")).write_bytes((pictures / "p01.png").read_bytes())
        Path(os.fsdecode(os.fsencode(place) + b"/torn\xff.png")).write_bytes(b"x")
        (place / "notes.txt").write_text("notes")
        (place / ".ipynb_checkpoints").mkdir()
        (place / ".ipynb_checkpoints" / "a-checkpoint.jpg").write_bytes((pictures / "p00.png").read_bytes())
        os.mkfifo(place / "pipe.jpg")
        (place / "secret.jpg").symlink_to("/etc/passwd")
    out = folder / f"any.{form}"
    manifest = predicting.run(options(model, place, out, format=form))
    predicting.show(manifest, str(out))
    told = capsys.readouterr().out
    assert manifest["predicted"] == 2 and "2 images predicted" in told
    assert "not predicted: 4 RAW, 2 no plain file, 1 not an image; see" in told
    assert "! more files were not predicted (7) than predicted (2)" in told
    assert "left out: 1 no picture; listed there too" in told
    assert "not looked into: 1 (.ipynb_checkpoints)" in told
    found = predictions.read(str(out)) if form == "parquet" else pd.read_csv(out)
    assert found["image_id"].tolist() == ["a", r"caf\xe9"]
    listed = pd.read_csv(f"{out}.quarantine.csv", keep_default_na=False)
    assert set(listed["file"]) == {
        *(f"p{number}.CR2" for number in range(4)), r"torn\xff.png", "notes.txt", "pipe.jpg", "secret.jpg"
    }  # fmt: skip
    assert listed["detail"].map(len).gt(0).all() and "root" not in Path(f"{out}.quarantine.csv").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": "xml"}, "--format xml: choose parquet, csv or isic"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"geometry": "squash"}, "--geometry squash: the model was trained on images made by crop"),
        ({"images": "/nowhere"}, "--images /nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_predicted(cluster, model, pictures, folder, changes, told):
    with pytest.raises(UserError, match=told):
        predicting.run(options(model, pictures, folder / "e.parquet", **changes))


# Waits after five chunks, to be killed there.
JOB = """
import itertools, runpy, sys, time
import ham_ray.inference.pipeline as prediction
prediction.CHUNK_IMAGES = 4
predicted = prediction.predicted
def five(*arguments):
    yield from itertools.islice(predicted(*arguments), 5)
    print("five", flush=True)
    time.sleep(1000)
prediction.predicted = five
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_job_goes_on_and_predicts_nothing_twice(cluster: str, model, pictures, folder, monkeypatch, capsys):
    out = folder / "killed.parquet"
    job = [sys.executable, "-c", JOB, str(ROOT / "jobs" / "predict.py"), "--precision", "float32"]
    job += ["--batch-size", "16", "--model", str(model), "--images", str(pictures), "--out", str(out)]
    pipe = subprocess.PIPE
    first = subprocess.Popen(job, env={**os.environ, "RAY_ADDRESS": cluster}, stdout=pipe, stderr=pipe, text=True)
    assert first.stdout and any(line == "five\n" for line in first.stdout), first.communicate()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = {int(path.stem[5:]) for path in Path(f"{out}.partial").glob("part-*.arrow")}
    assert len(kept) == 5 and not out.exists()
    predicted, again = pipeline.predicted, []

    def recorded(*arguments):
        for number, table in predicted(*arguments):
            again.append(number)
            yield number, table

    monkeypatch.setattr(pipeline, "CHUNK_IMAGES", 4)
    monkeypatch.setattr(pipeline, "predicted", recorded)
    predicting.run(options(model, pictures, out))
    assert sorted(again) == sorted({*range(18)} - kept)
    assert "going on: 5 of 18 parts are there" in capsys.readouterr().out
    found = predictions.read(str(out))
    np.testing.assert_allclose(found[RAW], expected(model, pictures), atol=1e-6)
