"""Fixtures shared by all tests: small images of the synthetic sample, and one Ray for the whole session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # several test processes share the cores: waiting threads spin
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # an epoch of tests would wait for the next look
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # what activating the environment does

from collections.abc import Iterator

import pytest
import warm
from apart import RAY, Apart
from undrawn import empty_figures

from ham_ray.cluster import connected
from ham_ray.data.images import Images, open_images
from ham_ray.data.ingest import ingest
from ham_ray.data.sample import write_sample

REAL_INPUTS = {
    "HAM_RAY_TEST_DATA": "the folder with ham10000_300x225.zip",
    "HAM_RAY_TEST_WEIGHTS": "ImageNet weights of ResNet50 without top, a .h5 file",
}


def pytest_configure(config: pytest.Config) -> None:
    """End the run where a variable names nothing; with `-n` each process has its own Ray where that can be."""
    for name, what in REAL_INPUTS.items():
        if (value := os.environ.get(name)) and not Path(value).exists():
            raise pytest.UsageError(f"{name}={value}: no such path; unset it, or name {what}")
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored under nohup or in the background: jobs would inherit that
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Apart(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with tests/ray: with `-n` the short files fill up at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(RAY))


def pytest_report_header() -> list[str]:
    """Say which real inputs the tests have."""
    return [
        f"{name}: {os.environ.get(name) or f'not set ({what}): its tests are skipped'}"
        for name, what in REAL_INPUTS.items()
    ]


@pytest.fixture(autouse=True)
def _marked_as_what_it_is(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test that is marked `unit` alone start neither a process nor Ray."""
    marks = {mark.name for mark in request.node.iter_markers()}
    if "unit" not in marks or marks & {"job", "ray"}:
        return
    start = subprocess.Popen.__init__

    def refused(self: subprocess.Popen, command: list[str], *arguments, **options) -> None:
        if command[0] != "git":  # which commit this is
            raise AssertionError(f"a test marked `unit` starts {command}")
        start(self, command, *arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", refused)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """IMAGES of the synthetic sample at 32 pixels: 431 images."""
    folder: Path = tmp_path_factory.mktemp("images")
    archive = write_sample(folder / "synthetic.zip", size=(80, 60))
    return open_images(ingest(archive, folder / "images", size=32).uri)


@pytest.fixture
def undrawn() -> Iterator[None]:
    """Figures that are empty, for tests of what is around them."""
    with empty_figures():
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """One Ray of two CPUs with its dashboard, for all tests; the address for other processes."""
    import ray

    from ham_ray import cluster

    with warm.loaded(cluster._ENVIRONMENT | cluster._KERAS), connected():
        yield ray.get_runtime_context().gcs_address
