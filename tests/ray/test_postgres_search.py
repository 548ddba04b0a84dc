"""Searches whose study is in PostgreSQL, as a user starts them: the server goes away, drivers come and go."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hosts import Host
from optuna.trial import FrozenTrial, TrialState
from postgres import Server, lacking, server

from ham_ray.data.images import Images, open_images
from ham_ray.search import database

pytestmark = [pytest.mark.ray, pytest.mark.long]
ROOT = Path(__file__).parents[2]
SPACE = """\
family: simple_cnn
objective: macro_f1
sampler: {name: tpe, seed: 3}
scheduler: {name: none}
recipe: {epochs: 4, batch_size: 64, patience: 0, precision: float32}
parameters:
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
points: [{learning_rate: 1.0e-3}, {learning_rate: 2.0e-3}]
"""


@pytest.fixture
def postgres() -> Iterator[Server]:
    if reason := lacking():
        pytest.skip(reason)
    with server() as made:
        yield made


TRIALS = """
import optuna
for trial in optuna.load_study(study_name="s", storage="{url}").get_trials():
    print(trial.state.name, [*trial.intermediate_values])
"""


class Driver:
    """A search as a process on a Ray that is there; an `impatient` one waits for its database for 5 s."""

    impatient = """
from ham_ray.search import database
from ham_ray.workflows.tune import JOB
database.AWAY = 5.0
JOB.main()
"""

    def __init__(
        self,
        cluster: str,
        images: Images,
        folder: Path,
        url: str,
        name: str,
        impatient: bool = False,
        host: Host | None = None,
        **options: Any,
    ) -> None:
        space = folder / "space.yaml"
        space.write_text(SPACE)
        self.output = folder / f"{name}.txt"
        usual = {
            "name": "s",
            "weights": "none",
            "precision": "float32",
            "max_concurrent": 1,
            "seeds": 1,
            "finalists": 0,
        }
        words = {**usual, "data": images.uri, "space": space, "out": folder / "runs", "storage": url, **options}
        command = [sys.executable, *(["-c", self.impatient] if impatient else [str(ROOT / "jobs" / "tune.py")])]
        command += [word for key, value in words.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        with self.output.open("w") as file:
            pipes: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT}
            if host:
                self.process = host.start(command, {"RAY_ADDRESS": cluster}, **pipes)
            else:
                self.process = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster}, **pipes)

    def wait_for(self, text: str, seconds: float = 400.0) -> None:
        """Wait until it has printed this."""
        deadline = time.monotonic() + seconds
        while text not in self.output.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.1)

    def end(self, seconds: float = 600.0) -> str:
        """Wait for its end; returns what it printed."""
        self.process.wait(timeout=seconds)
        return self.output.read_text()


def trials(url: str) -> list[FrozenTrial]:
    storage = optuna.storages.RDBStorage(database.with_driver(url))
    try:
        return optuna.load_study(study_name="s", storage=storage).get_trials()
    finally:
        storage.engine.dispose()


def test_a_search_goes_on_when_its_server_was_away_for_a_minute_and_a_half(
    cluster: str, postgres: Server, images: Images, tmp_path: Path
):
    driver = Driver(cluster, images, tmp_path, postgres.url, "driver", trials=3, finalists=1)
    driver.wait_for("trial 0 epoch 2/4")
    postgres.stop()
    time.sleep(90)
    postgres.start()
    printed = driver.end()
    assert driver.process.returncode == 0 and "Traceback" not in printed, printed
    assert "waiting, 60 s of 600 s" in printed and "answers again, after" in printed
    found = trials(postgres.url)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 3
    assert all([*trial.intermediate_values] == [*range(1, 5)] for trial in found)
    assert (tmp_path / "runs" / "s" / "finals" / "winner.json").exists()


def test_a_search_whose_server_stays_away_ends_with_a_code_of_its_own_and_the_same_command_goes_on(
    cluster: str, postgres: Server, images: Images, tmp_path: Path
):
    driver = Driver(cluster, images, tmp_path, postgres.url, "first", impatient=True, trials=2)
    driver.wait_for("trial 0 epoch 1/4")
    postgres.stop()
    printed = driver.end()
    assert driver.process.returncode == 75 and "Traceback" not in printed, printed
    assert "has not answered for" in printed.splitlines()[-1]
    assert printed.endswith("once it does, the same command goes on\n")
    postgres.start()
    again = Driver(cluster, images, tmp_path, postgres.url, "again", trials=2)
    assert "trial 0 epoch 1/4" not in again.end() and again.process.returncode == 0
    found = trials(postgres.url)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 2
    assert all([*trial.intermediate_values] == [1, 2, 3, 4] for trial in found)


def test_drivers_share_a_study_and_its_trials_outlive_one_that_is_killed(
    cluster: str, postgres: Server, images: Images, tmp_path: Path
):
    options = {"trials": 6, "finalists": 1}
    killed, stays = (Driver(cluster, images, tmp_path, postgres.url, name, **options) for name in ("killed", "stays"))
    for driver in (stays, killed):
        driver.wait_for("epoch 1/4")
    killed.process.kill()
    comes = Driver(cluster, images, tmp_path, postgres.url, "comes", **options)
    printed = [stays.end(), comes.end()]
    assert [stays.process.returncode, comes.process.returncode] == [0, 0] and "Traceback" not in "".join(printed), (
        printed
    )
    found = trials(postgres.url)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
    assert all([*trial.intermediate_values] == [1, 2, 3, 4] for trial in found)
    last = re.findall(r"trial (\d): learning_rate", killed.end())[-1]
    assert f"trial {last}: learning_rate" in "".join(printed)
    for number in range(6):
        counts = ["".join([killed.end(), *printed]).count(f"trial {number} epoch {epoch}/4") for epoch in (1, 2, 3, 4)]
        # no epoch is reported twice; one that the killed driver never heard of comes with the next one, without a line
        assert max(counts) == 1 and (sum(counts) == 4 or number == int(last)), (number, counts, printed)
    assert (tmp_path / "runs" / "s" / "finals" / "winner.json").exists()
    assert sum("finals and report: by process" in text for text in printed) == 1, printed


def test_drivers_on_two_hosts_share_a_study_and_one_goes_on_when_the_other_host_is_lost(
    make_hosts, images: Images, tmp_path: Path
):
    """Each with a Ray of its own; the server is on the host that stays."""
    if reason := lacking():
        pytest.skip(reason)
    stays_on, lost = make_hosts(cpus=(1, 1), ray=False)
    tmp_path.chmod(0o711)  # the server runs as another user
    table = open_images(shutil.copytree(images.uri, tmp_path / "images"))
    (tmp_path / "server").mkdir()
    postgres = Server(tmp_path / "server", stays_on)
    postgres.start()
    stays, gone = (
        Driver("", table, tmp_path, postgres.url, name, host=host, trials=4)
        for name, host in (("stays", stays_on), ("gone", lost))
    )
    for driver in (stays, gone):
        driver.wait_for("epoch 1/4")
    lost.kill()
    printed = stays.end()
    assert stays.process.returncode == 0 and "Traceback" not in printed, printed
    assert "taking over from process" in printed and "which is gone" in printed
    begun = re.findall(r"trial (\d): learning_rate", gone.end())
    assert begun and f"trial {begun[-1]}: learning_rate" in printed
    found = stays_on.python(TRIALS.format(url=database.with_driver(postgres.url)), 120)
    assert found.stdout == "COMPLETE [1, 2, 3, 4]\n" * 4, found.stdout + found.stderr
