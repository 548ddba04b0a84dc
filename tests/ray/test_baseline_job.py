"""jobs/baseline.py as a person uses it: killed and started again, misused, submitted to a cluster."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
from here import train_here

from ham_ray.cluster import plan
from ham_ray.data.images import Images
from ham_ray.errors import UserError
from ham_ray.evaluation import predictions
from ham_ray.recipe import baseline
from ham_ray.report import summary
from ham_ray.workflows.baseline import Options
from ham_ray.workflows.steps import baselines
from ham_ray.workflows.steps.comparison import compare
from ham_ray.workflows.steps.context import TrainingContext

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
RECIPE = baseline("simple_cnn").changed(epochs=4, batch_size=32)


def command(images: Images, out: Path, *more: str) -> list[str]:
    options = ["--data", images.uri, "--families", "simple_cnn", "--epochs", "4", "--set", "batch_size=32"]
    options += ["--precision", "float32", "--out", str(out), "--name", "job"]
    return [sys.executable, str(ROOT / "jobs" / "baseline.py"), *options, *more]


def options(images: Images, out: Path, **changes: Any) -> Options:
    """Those of `command`, for the job without its process."""
    chosen = Options(
        data=images.uri,
        families="simple_cnn",
        epochs=4,
        precision="float32",
        changes=["batch_size=32"],
        name="job",
        out=str(out),
    )
    return replace(chosen, **changes)


def start(arguments: list[str], cluster: str, **options) -> subprocess.Popen:
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=480)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


def test_ctrl_c_ends_a_training_and_gives_the_cluster_its_cpus_back(cluster: str, images: Images, tmp_path: Path):
    job = start(command(images, tmp_path, "--epochs", "4000"), cluster, cwd=tmp_path, start_new_session=True)
    while not list(tmp_path.glob("job/simple_cnn/checkpoints/epoch-*.npz")):
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    code, told, error = finish(job)
    assert (code, error) == (130, "interrupted: finished trainings and epochs are kept; the same command goes on\n")
    assert "Traceback" not in told
    deadline = time.monotonic() + 120
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert list(tmp_path.glob("job/simple_cnn/checkpoints/epoch-*.npz"))


@pytest.fixture(scope="module")
def resumed(cluster: str, images: Images, out: Path) -> str:
    """A job whose process was killed after its first epoch, and gone on with here; what is printed then."""
    first = start(command(images, out), cluster, cwd=out)
    checkpoints = out / "job" / "simple_cnn" / "checkpoints"
    while not list(checkpoints.glob("epoch-*.npz")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()  # until its working process, whose output it is, has ended too
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "orig_argv", command(images, out))
        summary.show(baselines.run(options(images, out))[0])
    return printed.getvalue()


def test_a_killed_job_goes_on_with_the_same_command(resumed: str):
    assert "simple_cnn: going on after epoch" in resumed
    assert "simple_cnn: epoch 1/4" not in resumed and "simple_cnn: epoch " in resumed


def test_it_ends_in_the_losses_of_an_uninterrupted_run(resumed: str, out: Path, images: Images):
    whole = train_here(RECIPE, images, out / "whole").history
    again = pd.read_parquet(out / "job" / "simple_cnn" / "history.parquet")
    np.testing.assert_allclose(again["train_loss"], whole["train_loss"], rtol=1e-5)
    assert again["epoch"].tolist() == [1, 2, 3, 4]


def test_the_run_folder_holds_what_repeats_it(resumed: str, out: Path, images: Images):
    run = out / "job" / "simple_cnn"
    assert {p.name for p in run.iterdir()} == {
        "recipe.json", "environment.json", "history.parquet", "predictions.parquet", "metrics.json", "model.keras",
        "calibration.json", "data_card.json", "split.parquet",
    }  # fmt: skip
    recorded = json.loads((run / "recipe.json").read_text())
    assert recorded["recipe"] == RECIPE.record()
    assert recorded["data"]["fingerprint"] == images.fingerprint
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert len(starts) == 2 and all("--epochs 4" in start["command"] for start in starts)
    assert {"summary.csv", "summary.json", "report.html"} <= {p.name for p in (out / "job").iterdir()}


def test_predictions_hold_each_held_out_image_once_and_no_training_lesion(resumed: str, out: Path, images: Images):
    predicted = predictions.read(str(out / "job" / "simple_cnn" / "predictions.parquet"))
    for split, fold in (("test", RECIPE.data.test_fold), ("validation", RECIPE.data.validation_fold)):
        expected = images.fold(fold)
        assert sorted(predicted.loc[predicted["split"] == split, "image_id"]) == sorted(expected["image_id"])
    trained = set(images.fold(*RECIPE.training_folds)["group_id"])
    assert trained.isdisjoint(predicted["group_id"])


def test_the_table_shows_the_family_the_trivial_baselines_and_that_the_data_is_drawn(resumed: str):
    for words in ("simple_cnn", "always_nv (trivial)", "thumbnail_logistic (trivial)", "SYNTHETIC DATA"):
        assert words in resumed


def test_a_finished_run_is_read_and_not_trained_again(resumed: str, out: Path, images: Images, capsys):
    baselines.run(options(images, out))
    told = capsys.readouterr().out
    assert "already finished" in told and "epoch 4/4" not in told


def test_the_name_of_another_run_is_refused_with_the_difference(resumed: str, out: Path, images: Images):
    with pytest.raises(UserError, match=r"recipe.dropout was 0\.3, is 0\.5"):
        baselines.run(options(images, out, changes=["batch_size=32", "dropout=0.5"]))


def test_workers_that_do_not_fit_are_refused_with_the_arithmetic(cluster: str, images: Images, tmp_path: Path):
    with pytest.raises(UserError, match=r"99 worker\(s\) × 0\.1 CPU do not fit: 1 node\(s\) with 2 CPUs"):
        baselines.run(options(images, tmp_path, workers=99))


def test_a_family_that_diverges_does_not_stop_the_others(
    resumed: str, out: Path, cluster: str, images: Images, tmp_path: Path, capsys
):
    recipes = {"bad": RECIPE.changed(learning_rate=1e30, warmup_epochs=0, epochs=1), "good": RECIPE}
    shutil.copytree(out / "job" / "simple_cnn", tmp_path / "good")  # finished already, so it is read
    result = compare(
        recipes, TrainingContext(images, {}, plan(1, [2.0]), str(tmp_path), 1e9, str(tmp_path / "activations"), 2**30)
    )
    bad, good = (next(row for row in result.rows if row.name == name) for name in recipes)
    assert not bad.metrics and "stopped: loss is nan at epoch 1" in bad.warnings[0]
    assert good.metrics["accuracy"].value > 0
    assert "the other families go on" in capsys.readouterr().out


@pytest.mark.long
def test_a_submitted_job_runs(cluster: str, tmp_path: Path):
    """`ray job submit` packs the checkout, less what .gitignore names, and runs it on the cluster."""
    import ray

    dashboard = f"http://{ray._private.worker.global_worker.node.address_info['webui_url']}"
    ray_cli = Path(sys.executable).with_name("ray")
    arguments = [str(ray_cli), "job", "submit", "--address", dashboard, "--working-dir", str(ROOT), "--"]
    arguments += ["python", "jobs/baseline.py", "--smoke", "--families", "resnet50_frozen", "--weights", "none"]
    arguments += ["--out", str(tmp_path)]
    code, told, error = finish(start(arguments, cluster))
    assert code == 0, told[-3000:] + error[-3000:]
    assert "succeeded" in told and "report: " in told
    assert not any(words in told for words in ("core_worker", "WARNING", "(pid=", "I0000", "E0000"))  # libraries' own
    assert "8 in training); " in told and " views computed once now" in told and "RANDOM WEIGHTS" in told
    assert len(list(tmp_path.glob("baseline-*/report.html"))) == 1
