"""What ends a trial's process ends neither the search nor the trial's chance of a restart. Without TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ham_ray.search import database, tuner
from ham_ray.search.database import StudyError
from ham_ray.search.space import Space
from ham_ray.search.study import Study, open_study

pytestmark = pytest.mark.ray
SPACE = Space(
    family="simple_cnn",
    scheduler={"name": "none"},
    parameters={"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}},
)


def trainable(fault: Callable[[int, bool], None], where: str = "step") -> Any:
    """A trial of one epoch; `fault` gets its number and whether it is its first, in `setup`, `step` or `reset`."""
    from ray import tune

    class FaultyTrial(tune.Trainable):
        def setup(self, config, marks):
            self.marks = marks
            self.trial = config["trial"]
            self.strike("setup")

        def reset_config(self, config):
            self.trial = config["trial"]
            self.strike("reset")
            return True

        def step(self):
            self.strike("step")
            return {"scores": [(1, 0.5)], "finished": True, "failed": "", "seconds": 1.0, "done": True}

        def strike(self, here):
            if here == where:
                mark = self.marks / str(self.trial)
                first = not mark.exists()
                mark.touch()
                fault(self.trial, first)

        def save_checkpoint(self, folder):
            pass

    return FaultyTrial


def search(folder: Path, faulty: Any, trials: int, max_failures: int = 2) -> Study:
    from ray import tune

    (folder / "marks").mkdir()
    study = open_study("s", f"sqlite:///{folder / 'study.db'}", SPACE, trials, {})
    base = SimpleNamespace(epochs=1)
    shared: Any = SimpleNamespace(base=base, folder=lambda number: str(folder / f"trial-{number}"), place=str(folder))
    means = tuner.TrialResources(1, 1.0, 0.0, max_failures)
    tuner.run(study, shared, means, tune.with_parameters(faulty, marks=folder / "marks"))
    return study


def states(study: Study) -> list[str]:
    return study.table()["state"].tolist()


def test_a_process_that_dies_between_two_trials_is_replaced(cluster: str, tmp_path: Path, capfd):
    """Tune counts that twice and then waits for ever. Nor does it say anything of its own."""

    def fault(trial: int, first: bool) -> None:
        if trial == 1 and first:
            os.kill(os.getpid(), 9)

    study = search(tmp_path, trainable(fault, "reset"), trials=3)
    assert states(study) == ["complete"] * 3
    out, errors = capfd.readouterr()
    assert "restart 1 of at most 2" in out and errors == ""
    assert all(line.startswith("trial ") for line in out.splitlines()), out


def test_a_process_that_cannot_be_set_up_fails_its_trial_alone(cluster: str, tmp_path: Path):
    def fault(trial: int, first: bool) -> None:
        if trial == 0:
            raise OSError("no space left on device")

    study = search(tmp_path, trainable(fault, "setup"), trials=2, max_failures=1)
    assert states(study) == ["fail", "complete"]
    assert study.table()["reason"][0] == "OSError: no space left on device"


def test_errors_that_cannot_be_carried_over_fail_their_trial_alone(cluster: str, tmp_path: Path):
    class Unreadable(Exception):
        def __reduce__(self):
            return os.listdir, ("/nowhere",)

    class Unpicklable(Exception):
        def __init__(self) -> None:
            super().__init__("holds a stream")
            self.stream = sys.stdout

    def fault(trial: int, first: bool) -> None:
        if trial < 2:
            raise (Unreadable, Unpicklable)[trial]()

    study = search(tmp_path, trainable(fault), trials=3, max_failures=0)
    assert states(study) == ["fail", "fail", "complete"]
    assert all(study.table()["reason"][:2])


def test_a_study_that_is_locked_during_a_search_ends_it_with_the_cause(
    cluster: str, tmp_path: Path, monkeypatch, capfd
):
    monkeypatch.setattr(database, "PATIENCE", 1.0)
    file = tmp_path / "study.db"

    def fault(trial: int, first: bool) -> None:
        import sqlite3

        if trial == 1 and first:
            fault.held = sqlite3.connect(file, isolation_level=None)  # type: ignore[attr-defined]
            fault.held.execute("BEGIN EXCLUSIVE")  # type: ignore[attr-defined]

    with pytest.raises(StudyError, match="database is locked; another program has held it"):
        search(tmp_path, trainable(fault), trials=3)
    again = open_study("s", f"sqlite:///{file}", SPACE, 3, {})
    assert states(again) == ["complete", "running"]
    assert "Traceback" not in "".join(capfd.readouterr())


MEMORY = """
import sys, time
from pathlib import Path
import ray
from ray._private.utils import get_used_memory
from ray._common.utils import get_system_memory
sys.path.insert(0, sys.argv[2])
from test_trial_failures import search, states, trainable

whole = get_system_memory()
limit = (get_used_memory() + 3.5 * 2**30) / whole
ray.init(
    num_cpus=1, include_dashboard=False, object_store_memory=10**8, logging_level="ERROR", log_to_driver=False,
    _system_config={"memory_usage_threshold": limit, "memory_monitor_refresh_ms": 100},
)

def fault(trial, first):
    if trial == 0 or trial == 1 and first:
        kept = []
        for _ in range(56):  # 7 GiB, unless it is killed before
            kept.append(bytearray(b"x") * 2**27)
            time.sleep(0.02)
        time.sleep(60)

study = search(Path(sys.argv[1]), trainable(fault), trials=3, max_failures=1)
print(states(study), study.table()["reason"][0])
"""


@pytest.mark.long
def test_a_trial_that_needs_too_much_memory_fails_and_the_search_goes_on(tmp_path: Path):
    """In a Ray of its own, whose memory monitor kills; trial 1 needs too much at its first start only."""
    if available() < 8 * 2**30:
        pytest.skip("8 GiB of free memory are needed")
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(Path(__file__).parent)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last.startswith("['fail', 'complete', 'complete'] OutOfMemoryError: "), done.stdout
    assert "running low on memory (" in last and "GB used / " in last
    restarts = {line[:8] for line in lines if "restart 1 of at most 1" in line}
    assert restarts >= {"trial 0:", "trial 1:"}  # the whole machine's memory counts, with what else runs on it
    assert "Traceback" not in done.stdout + done.stderr


def available() -> int:
    import psutil

    return psutil.virtual_memory().available
