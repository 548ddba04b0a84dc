"""Searches by Ray Tune: finished, extended, repeated, pruned, failed and killed; the study is always right."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
from here import train_here
from optuna.trial import TrialState
from ray.util import placement_group_table
from searching import small_search

from ham_ray.data.images import Images
from ham_ray.errors import UserError
from ham_ray.runs import CHECKPOINTS
from ham_ray.search import tuner
from ham_ray.search.space import load_space
from ham_ray.workflows.steps import tuning
from ham_ray.workflows.tune import Options

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
SPACE = """\
family: simple_cnn
objective: macro_f1
sampler: {name: tpe, seed: 3}
scheduler: {name: none}
recipe: {epochs: 2, batch_size: 64, patience: 0, precision: float32}
parameters:
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  dropout: {type: float, low: 0.0, high: 0.5}
"""
LONG = SPACE.replace("epochs: 2", "epochs: 16")  # for processes that are killed meanwhile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


def options(images: Images, folder: Path, text: str = SPACE, **changes) -> Options:
    path = folder / f"space-{abs(hash(text))}.yaml"
    path.write_text(text)
    return small_search(folder, path, **{"data": images.uri, **changes})


def search(images: Images, folder: Path, text: str = SPACE, **changes) -> pd.DataFrame:
    return tuning.run(options(images, folder, text, **changes)).trials


def study(folder: Path, name: str = "s") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder / name / 'study.db'}")


@pytest.fixture(scope="module")
def processes() -> set[int]:
    """Of the trials of `first`."""
    return set()


@pytest.fixture(scope="module")
def first(cluster: str, images: Images, folder: Path, processes: set[int]) -> pd.DataFrame:
    """A finished search of three trials."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            processes.update(process.pid for process in _trial_processes())

    thread = threading.Thread(target=watch)
    thread.start()
    found = search(images, folder)
    done.set()
    thread.join()
    return found


def values_here(images: Images, folder: Path, point: dict[str, float], text: str = SPACE) -> list[float]:
    """The scores of a trial's epochs, trained in this process."""
    folder.mkdir(exist_ok=True)
    recipe = load_space(options(images, folder, text).space_file).base().changed(**point)
    return train_here(recipe, images, folder).history["validation_macro_f1"].tolist()


def test_trials_share_one_process(first: pd.DataFrame, processes: set[int]):
    assert len(processes) == 1


def test_a_search_ends_with_its_trials_and_leaves_no_checkpoints(first: pd.DataFrame, folder: Path):
    assert first["state"].tolist() == ["complete"] * 3
    assert first["epochs"].tolist() == [2, 2, 2] and first["macro_f1"].between(0, 1).all()
    assert not list(folder.rglob(CHECKPOINTS)) and not list((folder / "s").glob("ray-*"))
    history = json.loads((folder / "s" / "trial-0000" / "history.json").read_text())
    assert max(row["validation_macro_f1"] for row in history) == first["macro_f1"][0]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "s" / "trials.parquet"), first)


def test_the_same_command_again_runs_nothing(first: pd.DataFrame, images: Images, folder: Path):
    before = (folder / "s" / "trial-0002" / "history.json").stat().st_mtime_ns
    pd.testing.assert_frame_equal(search(images, folder), first)
    assert (folder / "s" / "trial-0002" / "history.json").stat().st_mtime_ns == before


def test_more_trials_extend_it(first: pd.DataFrame, images: Images, folder: Path):
    longer = search(images, folder, trials=5)
    pd.testing.assert_frame_equal(longer.head(3), first)
    assert longer["state"].tolist() == ["complete"] * 5


def test_one_at_a_time_repeats_exactly(first: pd.DataFrame, images: Images, folder: Path):
    again = search(images, folder, name="again")
    columns = ["trial", "state", "macro_f1", "learning_rate", "dropout"]
    pd.testing.assert_frame_equal(again[columns], first[columns])


def test_a_warm_trial_gives_what_a_fresh_network_gives(first: pd.DataFrame, images: Images, tmp_path: Path):
    """The third trial of a process, with steps compiled for the first."""
    point = {name: float(first[name][2]) for name in ("learning_rate", "dropout")}
    assert max(values_here(images, tmp_path, point)) == pytest.approx(first["macro_f1"][2], abs=1e-6)


def test_other_data_is_refused(first: pd.DataFrame, images: Images, folder: Path):
    with pytest.raises(UserError, match="space: .* there, .* now.*--mixed"):
        search(images, folder, SPACE.replace("high: 0.5", "high: 0.6"))


def test_a_trial_that_diverges_or_raises_fails_with_its_reason_and_the_others_go_on(
    cluster: str, images: Images, folder: Path
):
    text = SPACE.replace("high: 1.0e-2", "high: 1.0e+32").replace("low: 1.0e-4", "low: 1.0e-3")
    points = "points: [{learning_rate: 1.0e+32, dropout: 0.1}, {learning_rate: 3.0e-3}, {learning_rate: 2.0e-3}]\n"
    (folder / "fails").mkdir()
    (folder / "fails" / "trial-0001").write_text("a file where the trial wants its folder")
    table = search(images, folder, text + points, name="fails", max_failures=1)
    assert table["state"].tolist() == ["fail", "fail", "complete"]
    assert "learning rate" in table["reason"][0] and "NotADirectoryError" in table["reason"][1]


def test_when_every_trial_fails_alike_the_search_stops_and_says_it(cluster: str, images: Images, folder: Path):
    text = SPACE.replace("low: 1.0e-4, high: 1.0e-2", "low: 1.0e+35, high: 1.0e+36")
    with pytest.raises(UserError, match="every trial failed for the same reason.*loss is nan"):
        search(images, folder, text, name="hopeless", trials=20)
    assert len(study(folder, "hopeless").get_trials()) == 3


def test_the_scheduler_stops_bad_trials_early(cluster: str, images: Images, folder: Path):
    points = "points: [{learning_rate: 3.0e-3}, {learning_rate: 1.0e-30}, {learning_rate: 1.1e-30}]\n"
    text = SPACE.replace("name: none", "name: asha, grace: 1, reduction: 2").replace("low: 1.0e-4", "low: 1.0e-30")
    table = search(images, folder, text + points, name="pruned", trials=3)
    assert table["state"][0] == "complete" and "pruned" in table["state"].tolist()
    assert table.loc[table["state"] == "pruned", "epochs"].tolist().count(1) >= 1
    assert {t.state for t in study(folder, "pruned").get_trials()} <= {TrialState.COMPLETE, TrialState.PRUNED}


def _trial_processes() -> list[psutil.Process]:
    """Those of warm trials: Ray names a process by its class, and while a method runs by the base that defines it."""
    names = ("ray::InProcessTrial", "ray::ResourceTrainable")
    return [p for p in psutil.process_iter(["cmdline"]) if " ".join(p.info["cmdline"] or []).startswith(names)]


@pytest.fixture(scope="module")
def killed(cluster: str, images: Images, folder: Path) -> pd.DataFrame:
    """A search whose trial 0 lost its process once and trial 1 at each new checkpoint, which `max_failures` bounds."""
    done = threading.Event()

    def kill() -> None:
        seen = set[Path]()
        while not done.wait(0.02):
            new = {*(folder / "killed").glob("trial-0001/checkpoints/epoch-*.npz")} - seen
            if not seen:
                new |= {*(folder / "killed").glob("trial-0000/checkpoints/epoch-*.npz")}
            if new:
                for process in _trial_processes():
                    with contextlib.suppress(psutil.NoSuchProcess):  # one of an earlier search may be ending by itself
                        process.send_signal(signal.SIGKILL)
            seen |= new

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        return search(images, folder, LONG, name="killed", trials=2, max_failures=1)
    finally:
        done.set()
        thread.join()


def test_a_killed_trial_process_goes_on_from_its_checkpoint(killed: pd.DataFrame, images: Images, folder: Path):
    assert killed["state"][0] == "complete"
    trial = study(folder, "killed").get_trials()[0]
    whole = values_here(images, folder / "unharmed", trial.params, LONG)
    assert [*trial.intermediate_values.values()] == pytest.approx(whole, abs=1e-6) and len(whole) == 16


def test_a_process_that_dies_again_and_again_fails_its_trial(killed: pd.DataFrame):
    assert killed["state"][1] == "fail" and "Died" in killed["reason"][1]
    assert killed["epochs"][1] < 16


def test_an_interrupted_and_a_killed_search_go_on_with_the_same_command(
    cluster: str, images: Images, elsewhere: Path, tmp_path: Path, capsys
):
    space = tmp_path / "space.yaml"
    space.write_text(SPACE.replace("epochs: 2", "epochs: 6"))
    command = [sys.executable, str(ROOT / "jobs" / "tune_resnet.py"), "--data", images.uri, "--name", "s"]
    command += ["--trials", "3", "--space", str(space), "--weights", "none", "--out", str(tmp_path)]
    command += ["--precision", "float32", "--max-concurrent", "1", "--finalists", "1", "--seeds", "1", "--views", "2"]
    command += ["--refit"]

    def ended(number: int, checkpoint: str) -> tuple[int, str, str]:
        """Start the job and send it the signal once the checkpoint is there."""
        pipe = subprocess.PIPE
        job = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster}, stdout=pipe, stderr=pipe, text=True)
        while not list(tmp_path.glob(checkpoint)):
            assert job.poll() is None, job.communicate()
            time.sleep(0.02)
        job.send_signal(number)
        return *job.communicate(timeout=300), job.returncode

    out, errors, code = ended(signal.SIGINT, "s/trial-0000/checkpoints/epoch-*.npz")
    assert code == 130, out + errors
    assert errors == "interrupted: finished trials and epochs are kept; the same command goes on\n"
    assert "Traceback" not in out + errors and not (tmp_path / "s" / "finals").exists()
    ended(signal.SIGKILL, "s/trial-0001/checkpoints/epoch-00002.npz")
    before = study(tmp_path).get_trials()
    assert [trial.state for trial in before] == [TrialState.COMPLETE, TrialState.RUNNING]

    capsys.readouterr()
    chosen = small_search(tmp_path, space, data=images.uri, finalists=1, views=2, refit=True, external=[str(elsewhere)])
    tuning.show(tuning.run(chosen))
    printed = capsys.readouterr().out
    after = study(tmp_path).get_trials()
    assert [trial.state for trial in after] == [TrialState.COMPLETE] * 3
    assert after[0].datetime_complete == before[0].datetime_complete
    assert after[1].params == before[1].params
    assert "best trials" in printed and "trial 1 epoch 1/6" not in printed
    figures = json.loads((tmp_path / "s" / "finals" / "metrics.json").read_text())
    assert any("in 2 views" in name for name in figures)
    assert sum(name.endswith(" on elsewhere") for name in figures) == 1
    assert "trained on the validation folds too, 1 averaged" in figures
    winner = json.loads((tmp_path / "s" / "finals" / "winner.json").read_text())
    (refitted,) = winner["members"][str(winner["trial"])]
    assert refitted.endswith("-refit-0") and not winner["looks"]
    assert ("the last one, calibrated" in figures) == winner["calibration"]["helps"]
    table = pd.read_parquet(tmp_path / "s" / "finals" / refitted / "predictions.parquet")
    assert set(table["split"]) == {"test"}
    split = pd.read_parquet(tmp_path / "s" / "finals" / refitted / "split.parquet")
    assert dict(split["split"].value_counts()) == {"training": len(images.fold(1, 2, 3, 4)), "test": len(table)}
    assert "baselines to set beside the winner: none" in printed
    assert (tmp_path / "s" / "finals" / "report.html").exists()


def test_trials_of_two_workers_untold_at_a_kill_and_stopped_early_leave_nothing_behind(
    cluster: str, images: Images, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    text = SPACE.replace("name: none", "name: asha, grace: 1, reduction: 6").replace("low: 1.0e-4", "low: 1.0e-30")
    text += "points: [{learning_rate: 3.0e-3, dropout: 0.0}, {learning_rate: 1.0e-30, dropout: 0.1}]\n"
    with monkeypatch.context() as untold:
        untold.setattr(tuner._Asker, "on_trial_complete", lambda *arguments, **more: None)
        with pytest.raises(UserError, match="was interrupted: 0 of 1 trials finished"):
            search(images, folder, text, name="joined", trials=1, workers_per_trial=2)
    before, _ = study(folder, "joined").get_trials()
    assert before.state == TrialState.RUNNING and [*before.intermediate_values] == [1]  # the last epoch is not told
    table = search(images, folder, text, name="joined", trials=2, workers_per_trial=2)
    assert table["state"].tolist() == ["complete", "pruned"]
    assert table["epochs"].tolist() == [2, 1]
    after, _ = study(folder, "joined").get_trials()
    assert after.params == before.params and after.intermediate_values[1] == before.intermediate_values[1]
    assert after.user_attrs["seconds"] > before.user_attrs["seconds"]
    lines = capsys.readouterr().out
    assert "trial 0 epoch 1/2: " in lines and "trial 1 stopped after epoch 1: " in lines
    assert not list((folder / "joined").rglob("model.keras"))
    here = values_here(images, folder / "here", {"learning_rate": 3e-3, "dropout": 0.0})
    assert table["macro_f1"][0] == pytest.approx(max(here), abs=0.02)
    deadline = time.monotonic() + 120
    while placement_groups() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not placement_groups()


def placement_groups() -> list[dict]:
    """Those that hold resources."""
    return [group for group in placement_group_table().values() if group["state"] not in ("REMOVED",)]
