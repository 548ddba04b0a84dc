"""Hosts for tests of clusters. A module that uses them keeps away from `cluster`: Ray's tools would see both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from elsewhere import write_elsewhere
from hosts import Hosts, hosts, lacking
from undrawn import empty_figures

from ham_ray.data.sample import write_sample


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Iterator[None]:
    """Pages without figures, in all files of this folder."""
    with empty_figures():
        yield


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of other images than `images`, but for four."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return write_elsewhere(folder / "elsewhere.zip", write_sample(folder / "synthetic.zip", size=(80, 60)))


@pytest.fixture(scope="session")
def _rights() -> None:
    if reason := lacking():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def two_hosts(_rights: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts of two CPUs each in one cluster, for tests that lose neither; `two_hosts.shared` is seen by both."""
    with hosts(tmp_path_factory.mktemp("shared")) as made:
        yield made


@pytest.fixture
def make_hosts(_rights: None, tmp_path: Path) -> Iterator[Callable[..., Hosts]]:
    """`hosts.hosts` sharing the test's `tmp_path`, for tests that lose a host; all end with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(hosts(tmp_path, **options))
