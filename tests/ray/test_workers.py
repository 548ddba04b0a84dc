"""Training under Ray Train: any number of workers gives the same run, also after a worker was killed."""

from __future__ import annotations

import json
import threading
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import psutil
import pyarrow.dataset as pads
import pytest
import tensorflow as tf
from ham10000 import CODES
from here import train_here

from ham_ray.cluster import plan
from ham_ray.data.images import Images, read_pixels
from ham_ray.data.stored import decode
from ham_ray.errors import UserError
from ham_ray.inference.pipeline import predict_rows
from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM
from ham_ray.recipe import Recipe, baseline
from ham_ray.runs import CHECKPOINTS, MODEL
from ham_ray.training import input_pipeline, log_relay, workers
from ham_ray.training.augment import view
from ham_ray.training.step import Replica, predict

pytestmark = pytest.mark.ray
# Dropout, crops, colour and BatchNorm are all on: whatever depends on the number of workers would show.
RECIPE = baseline("simple_cnn").changed(epochs=6, batch_size=32, warmup_epochs=0.5, learning_rate=3e-4)


def run(images: Images, uri: Path, count: int, recipe: Recipe = RECIPE, memory: float = 1e9) -> workers.Outcome:
    parts = input_pipeline.split(images, recipe, count, memory)
    return workers.train(recipe, images, parts, RANDOM, plan(count, [2.0]), str(uri))


def losses(outcome: workers.Outcome) -> np.ndarray:
    return outcome.history["train_loss"].to_numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def single(cluster: str, images: Images, folder: Path) -> workers.Outcome:
    """The uninterrupted run of one worker."""
    return run(images, folder / "single", 1)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_trained_network_is_saved_with_its_classes_and_gives_the_predictions(tmp_path: Path, precision: str):
    """In float32, in the order of the images, which are 300: three batches, the last of them padded."""
    recipe = RECIPE.changed(precision=precision, seed=3)
    network = build(recipe, 32, RANDOM, 7)
    for variable in network.variables:  # as after a training, BatchNorm's statistics too
        variable.assign(variable.numpy() + np.random.default_rng(0).uniform(0, 0.01, variable.shape))
    pixels = np.random.default_rng(1).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    replica = Replica(tf.distribute.get_strategy())
    config = {"size": 32, "classes": CODES, "uri": str(tmp_path)}
    predicted = predict(workers._saved(recipe, config, network, replica), pixels)
    kept = keras.models.load_model(tmp_path / MODEL)
    assert {layer.compute_dtype for layer in kept._flatten_layers()} <= {"float32", "uint8"}
    np.testing.assert_allclose(predicted, kept.predict(pixels, verbose=0), atol=1e-6)
    assert predicted.std(axis=0).max() > 1e-4, "the images look alike to this network: their order would not show"
    for variable, trained in zip(kept.variables, network.variables, strict=True):
        assert variable.dtype == "float32"
        np.testing.assert_array_equal(variable, trained)
    with zipfile.ZipFile(tmp_path / MODEL) as archive:
        recorded = json.loads(archive.read("metadata.json"))["ham_ray_classes"]
    assert recorded == [*CODES]


def test_every_image_of_validation_and_test_is_predicted_once(single: workers.Outcome, images: Images):
    rows = input_pipeline.split_rows(images, RECIPE)
    assert single.failed is None
    assert {name: len(p) for name, p in single.probabilities.items()} == {
        n: len(rows[n]) for n in ("validation", "test")
    }
    assert sum(len(frame) for frame in rows.values()) == len(images.rows)


def test_the_saved_model_gives_the_predictions(single: workers.Outcome, images: Images, folder: Path):
    stored = pads.dataset(images.uri, format="parquet", exclude_invalid_files=True)
    test = stored.to_table(filter=pads.field("fold") == RECIPE.data.test_fold).to_pandas().set_index("image_id")
    test = test.loc[images.fold(RECIPE.data.test_fold)["image_id"]]
    model = keras.models.load_model(folder / "single" / MODEL)
    predicted = model.predict(np.stack([decode(encoded) for encoded in test["image"]]), verbose=0)
    np.testing.assert_allclose(single.probabilities["test"], predicted, atol=1e-5)


def test_a_saved_model_predicts_views_over_ray_data(single: workers.Outcome, images: Images, folder: Path):
    rows = images.fold(RECIPE.data.test_fold, RECIPE.data.validation_fold)
    path = folder / "single" / MODEL
    model, pixels = keras.models.load_model(path), read_pixels(images, rows)
    expected = np.mean([model.predict(view(pixels, index), verbose=0) for index in range(3)], axis=0)
    found = predict_rows(str(path), images, rows, views=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.long
def test_two_workers_fine_tune_as_one_through_both_phases(cluster: str, images: Images, folder: Path):
    changes = {"epochs": 2, "head_epochs": 1, "unfreeze_depth": 1, "batch_size": 32, "averaging": 0.9}
    recipe = baseline("resnet50_finetuned").changed(**changes)
    one = train_here(recipe, images, folder / "finetuned-here")
    two = run(images, folder / "finetuned-two", 2, recipe)
    assert two.history["phase"].tolist() == ["head", "all"]
    np.testing.assert_allclose(losses(two), one.history["train_loss"], rtol=1e-3)
    np.testing.assert_allclose(two.history["validation_loss"], one.history["validation_loss"], rtol=1e-3)
    np.testing.assert_allclose(two.probabilities["validation"], one.probabilities["validation"], atol=1e-2)


@pytest.fixture(scope="module")
def killed(cluster: str, images: Images, folder: Path) -> workers.Outcome:
    """A run of two workers, one of which was killed after the first epoch."""
    pids: list[int] = []
    place = folder / "killed"
    threading.Thread(target=_kill, args=("RayTrainWorker", place / CHECKPOINTS, pids), daemon=True).start()
    outcome = run(images, place, 2)
    assert len(pids) == 1, "the worker was done before it could be killed"
    return outcome


def test_a_killed_worker_is_restarted_and_goes_on(killed: workers.Outcome):
    assert killed.failed is None and killed.history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]


def test_two_workers_give_the_losses_and_predictions_of_one(single: workers.Outcome, killed: workers.Outcome):
    """Also across a restart; without one, the fine-tuning above does."""
    np.testing.assert_allclose(losses(killed), losses(single), rtol=1e-3)
    np.testing.assert_allclose(killed.history["validation_loss"], single.history["validation_loss"], rtol=1e-2)
    np.testing.assert_allclose(killed.probabilities["test"], single.probabilities["test"], atol=5e-3)


def test_a_killed_controller_is_replaced(single: workers.Outcome, images: Images, folder: Path, capsys):
    pids: list[int] = []
    place = folder / "controller"
    threading.Thread(target=_kill, args=("TrainController", place / CHECKPOINTS, pids), daemon=True).start()
    outcome = run(images, place, 1)
    assert len(pids) == 1, "the training was done before its controller could be killed"
    assert "controller: a process died" in capsys.readouterr().out
    assert outcome.failed is None and not list(place.glob("ray-*"))
    np.testing.assert_allclose(losses(outcome), losses(single), rtol=1e-5)


def test_lines_arrive_after_the_relay_died(cluster: str, capsys):
    with log_relay.relay_logs("run", "1 worker") as relay:
        say = log_relay.rank0_logger(relay, 0, "run")
        say("one")
        wait_for("run: one", capsys)
        before = {p.pid for p in psutil.Process().children(recursive=True) if "LogRelay" in _command(p)}
        assert before
        for pid in before:
            psutil.Process(pid).kill()
        say("two")
        wait_for("run: two", capsys)


def wait_for(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Until it is printed."""
    printed, deadline = "", time.monotonic() + 120
    while line not in printed:
        assert time.monotonic() < deadline, printed
        time.sleep(0.05)
        printed += capsys.readouterr().out


def test_images_that_are_too_many_to_keep_are_streamed_in_the_same_batches(
    single: workers.Outcome, images: Images, folder: Path, capsys
):
    outcome = run(images, folder / "streamed", 1, memory=0)
    assert "training 1 MiB, streamed; validation 0 MiB, streamed" in capsys.readouterr().out
    np.testing.assert_allclose(losses(outcome), losses(single), rtol=1e-5)
    np.testing.assert_allclose(outcome.history["validation_loss"], single.history["validation_loss"], rtol=1e-5)
    for split in ("validation", "test"):
        np.testing.assert_allclose(outcome.probabilities[split], single.probabilities[split], atol=1e-5)


def test_a_batch_that_does_not_divide_is_refused_before_anything_starts(images: Images):
    with pytest.raises(UserError, match="batch_size 32 does not divide over 3 workers"):
        input_pipeline.split(images, RECIPE, 3, 1e9)


def _kill(kind: str, checkpoints: Path, killed: list[int]) -> None:
    """SIGKILL one process of a training once the first epoch is saved; it is looked for before: epochs are short."""
    found: list[psutil.Process] = []
    before = psutil.pids()  # of trainings that have just ended
    while not found:
        time.sleep(0.01)
        found = [p for p in psutil.Process().children(recursive=True) if p.pid not in before and kind in _command(p)]
    while not list(checkpoints.glob("epoch-*.npz")):
        time.sleep(0.002)
    found[-1].kill()
    killed.append(found[-1].pid)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
