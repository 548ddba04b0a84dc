"""Processes of `pytest -n` that are hosts of their own, so that each can have its own Ray.

Two Rays on one machine get in each other's way: by ports, by /tmp/ray, by tools that look through all processes. Where
namespaces can be made, each process of pytest-xdist has a network, processes and a /tmp/ray of its own. Elsewhere one
of them gets all files of tests/ray.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from hosts import NAMESPACES, lacking
from xdist.scheduler import LoadFileScheduling

RAY = f"{Path(__file__).parent.name}/ray/"
# bash reaps orphans, and with the end of pytest-xdist's process all that it started ends
_INIT = 'ip link set lo up && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && "$@"; exit $?'


class Apart:
    """Plugin of the process that hands out the tests, file by file, those of tests/ray first: they take longest."""

    def __init__(self, config: pytest.Config) -> None:
        self.lacking = lacking()
        config.option.loadscopereorder = False
        if not self.lacking:
            start = shlex.join([*NAMESPACES, "bash", "-c", _INIT, "apart", sys.executable])
            config.option.tx = [f"popen//python={start}" if spec == "popen" else spec for spec in config.option.tx]

    def pytest_report_header(self) -> str:
        """Say whether the processes are apart."""
        return f"one process for tests/ray: {self.lacking}" if self.lacking else "each process has a Ray of its own"

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: object) -> LoadFileScheduling:
        """Make the one that keeps the tests of a file together, and all of tests/ray where there can be one Ray."""
        return LoadFileScheduling(config, log) if not self.lacking else _OneRay(config, log)


class _OneRay(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return RAY if nodeid.startswith(RAY) else super()._split_scope(nodeid)
