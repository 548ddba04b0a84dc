"""Saved classifiers: only this project's are opened, and nothing of a file is executed to find that out."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES

from ham_ray.errors import UserError
from ham_ray.inference import saved
from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM
from ham_ray.recipe import baseline
from ham_ray.workflows.predict import Options

pytestmark = pytest.mark.model
CALIBRATION = {"temperature": 2.0, "tau": 0.5, "prior": [0.1] * 6 + [0.4], "thresholds": {"specificity_90": 0.3}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an untrained model for images of 32 pixels."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    build(baseline("simple_cnn"), 32, RANDOM, 7).classifier().save(folder / "model.keras")
    (folder / "calibration.json").write_text(json.dumps(CALIBRATION))
    (folder / "data_card.json").write_text(json.dumps({"geometry": "squash"}))
    rows = {"image_id": ["a", "b", "c"], "group_id": ["l1", "l2", "l3"], "split": ["training", "validation", "test"]}
    pd.DataFrame(rows).to_parquet(folder / "split.parquet")
    return folder


def test_a_run_is_found_with_what_lies_beside_its_model(run: Path):
    for place in (run, run / "model.keras"):
        found = saved.find(str(place))
        assert found.members == {str(run / "model.keras"): 1.0}
        assert (found.size, found.geometry, found.views) == (32, "squash", 1)
        assert found.calibration is not None and found.calibration.temperature == 2.0


def test_pictures_are_made_square_as_those_that_the_model_learned_from(run: Path, tmp_path: Path):
    def pixels(model: Path, geometry: str | None = None) -> tuple[int, str]:
        return Options(models=[str(model)], images="i", out="o", geometry=geometry).pixels

    assert pixels(run) == (32, "squash")
    with pytest.raises(UserError, match="--geometry crop: the model was trained on images made by squash"):
        pixels(run, "crop")
    (tmp_path / "m.keras").write_bytes((run / "model.keras").read_bytes())
    assert pixels(tmp_path / "m.keras", "squash") == (32, "squash")


def test_a_model_alone_has_nothing_beside_it(run: Path, tmp_path: Path):
    (tmp_path / "m.keras").write_bytes((run / "model.keras").read_bytes())
    found = saved.find(str(tmp_path / "m.keras"))
    assert (found.geometry, found.calibration, found.splits) == (None, None, {})


def test_a_winner_is_the_mean_of_its_trials_and_of_their_trainings(run: Path, tmp_path: Path):
    for name in ("trial-4-seed-0", "trial-4-seed-1", "trial-9-seed-0"):
        place = tmp_path / "search" / "finals" / name
        place.mkdir(parents=True)
        (place / "model.keras").write_bytes((run / "model.keras").read_bytes())
    splits = {"image_id": ["a", "b"], "group_id": ["l1", "l2"], "split": ["validation", "test"]}
    pd.DataFrame(splits).to_parquet(tmp_path / "search" / "finals" / "trial-4-seed-0" / "split.parquet")
    splits["split"] = ["training", "test"]
    pd.DataFrame(splits).to_parquet(tmp_path / "search" / "finals" / "trial-9-seed-0" / "split.parquet")
    members = {"4": ["trial-4-seed-0", "trial-4-seed-1"], "9": ["trial-9-seed-0"]}
    winner = {"trial": 4, "members": members, "views": 8, "calibration": CALIBRATION}
    (tmp_path / "search" / "finals" / "winner.json").write_text(json.dumps(winner))
    found = saved.find(str(tmp_path / "search"))
    assert [*found.members.values()] == [0.25, 0.25, 0.5] and found.views == 8
    assert found.splits == {"a": "training", "l1": "training", "b": "test", "l2": "test"}


def test_the_split_of_an_image_is_the_nearest_to_learning(run: Path):
    known = saved.find(str(run))
    assert saved.split_of([known], "a", "?") == "training"
    assert saved.split_of([known], "new image", "l2") == "validation"  # another image of a lesion that chose
    assert saved.split_of([known], "c", "l3") == "test"
    assert saved.split_of([known], "d", "l4") == "new"


def test_what_one_of_several_models_learned_from_is_training_for_all():
    first = saved.Saved("first", {}, 32, CLASSES, None, None, {"a": "test", "b": "training", "c": "test", "d": "test"})
    second = saved.Saved(
        "second", {}, 32, CLASSES, None, None, {"a": "training", "b": "test", "c": "validation", "d": "test"}
    )
    found = {name: saved.split_of([first, second], name, "?") for name in "abcde"}
    assert found == {"a": "training", "b": "training", "c": "validation", "d": "test", "e": "new"}


def test_a_name_in_another_case_or_with_a_suffix_is_still_the_known_image():
    """As a new image it would count in figures of a model that learned from it."""
    splits = {"ISIC_1": "training", "ISIC_2": "test", "lesion": "validation", "a": "test", "A": "training"}
    model = saved.Saved("m", {}, 32, CLASSES, None, None, splits)
    expected = {
        "isic_1": "training",
        "ISIC_1.JPG": "training",
        "isic_2.heic": "test",
        "ISIC_3": "new",
        "a": "test",
        "a.png": "training",  # of two that are alike the nearest to learning
    }
    assert {name: saved.split_of([model], name, "?") for name in expected} == expected
    (note,) = saved.name_notes([model], ["ISIC_1", "isic_1", "ISIC_2.jpg", "ISIC_3"])
    assert note.startswith("2 images have names that a model knows in another case or without suffix (isic_1, ISIC_2")
    assert saved.name_notes([model], ["ISIC_1", "new"]) == []


def test_places_without_a_model_are_refused(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"no model there.*; name one of .*/run"):
        saved.find(str(run.parent))
    with pytest.raises(UserError, match="no such file"):
        saved.find(str(tmp_path / "m.keras"))


class Bomb:
    """What a pickle may do."""

    def __reduce__(self):
        return (Path.touch, (Path("/tmp/ham_ray_bomb"),))


def test_other_files_are_refused_unopened(tmp_path: Path):
    (tmp_path / "m.keras").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="no Keras 3 file"):
        saved.find(str(tmp_path / "m.keras"))
    assert not Path("/tmp/ham_ray_bomb").exists()
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("other.txt", "")
    with pytest.raises(UserError, match="no Keras 3 file"):
        saved.find(str(tmp_path / "m.keras"))


@pytest.mark.parametrize(
    ("units", "name", "dtype", "told"),
    [
        (1, "ham_ray", "uint8", "of 1 classes"),
        (7, "theirs", "uint8", "named 'theirs'"),
        (7, "ham_ray", "float32", "takes float32"),
    ],
)
def test_models_of_other_makers_are_refused_with_what_was_found(tmp_path: Path, units, name, dtype, told):
    inputs = keras.Input((32, 32, 3), dtype=dtype)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(inputs))
    x = keras.layers.Softmax(name="probabilities")(keras.layers.Dense(units, name="logits")(x))
    keras.Model(inputs, x, name=name).save(tmp_path / "m.keras")
    with pytest.raises(UserError, match=f"no classifier of this project: .*{told}"):
        saved.find(str(tmp_path / "m.keras"))


def test_code_in_a_model_is_not_run(run: Path, tmp_path: Path):
    inputs = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Lambda(lambda x: x)(keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(inputs)))
    x = keras.layers.Softmax(name="probabilities")(keras.layers.Dense(7, name="logits")(x))
    keras.Model(inputs, x, name="ham_ray").save(tmp_path / "m.keras")
    for opened in (saved.load, saved.find):
        with pytest.raises(UserError, match="safely: .*Lambda"):
            opened(str(tmp_path / "m.keras"))


def test_a_damaged_model_is_refused_before_anything_is_predicted(run: Path, tmp_path: Path):
    content = bytearray((run / "model.keras").read_bytes())
    with zipfile.ZipFile(run / "model.keras") as archive:
        weights = archive.getinfo("model.weights.h5")
    for place in range(weights.header_offset + 2000, weights.header_offset + 2010):
        content[place] ^= 0xFF
    (tmp_path / "m.keras").write_bytes(content)
    with pytest.raises(UserError, match="damaged: the checksum of its model.weights.h5"):
        saved.find(str(tmp_path / "m.keras"))


def test_bfloat16_changes_probabilities_little_and_weights_not(run: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    exact, quick = (saved.load(str(run / "model.keras"), kind) for kind in ("float32", "bfloat16"))
    assert {str(weight.dtype) for weight in quick.weights} == {"float32"}
    first, second = (np.asarray(model(pixels)) for model in (exact, quick))
    assert second.dtype == np.float32 and 0 < np.abs(first - second).max() < 0.01


def _within(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers that are called, in models within the model too."""
    parts = [_within(layer) if isinstance(layer, keras.Model) else [layer] for layer in model.layers]
    return [layer for part in parts for layer in part]


def test_a_resnet50_in_bfloat16_has_its_batch_norm_folded_and_predicts_the_same(tmp_path: Path):
    build(baseline("resnet50_frozen"), 32, RANDOM, 7).classifier().save(tmp_path / "m.keras")
    exact, quick = (saved.load(str(tmp_path / "m.keras"), kind) for kind in ("float32", "bfloat16"))
    computing = [type(layer).__name__ for layer in _within(quick)]
    assert computing.count("FoldedConv") == 53 and "BatchNormalization" not in computing
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    first, second = (np.asarray(model(pixels, training=False)) for model in (exact, quick))
    assert 0 < np.abs(first - second).max() < 0.05
