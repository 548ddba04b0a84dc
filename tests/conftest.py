"""Fixtures shared by all tests: small images of the synthetic sample, and one Ray for the whole session."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # what activating the environment does

from collections.abc import Iterator

import pytest

from ham_ray.cluster import connected
from ham_ray.data.images import Images, open_images
from ham_ray.data.ingest import ingest
from ham_ray.data.sample import write_sample


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """IMAGES of the synthetic sample at 32 pixels: 431 images."""
    folder: Path = tmp_path_factory.mktemp("images")
    archive = write_sample(folder / "synthetic.zip", size=(80, 60))
    return open_images(ingest(archive, folder / "images", size=32).uri)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """One Ray of two CPUs with its dashboard, for all tests; the address for other processes."""
    import ray

    with connected():
        yield ray.get_runtime_context().gcs_address
