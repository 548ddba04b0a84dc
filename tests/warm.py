"""Ray's worker processes forked from one that has loaded Ray and TensorFlow: they start in 0.2 s instead of 6.

Within `loaded()` Ray runs this file where it would run its `setup_worker.py`. A worker that needs more than variables
of the environment (the working folder of a submitted job, say) is started as Ray does. What follows is Ray's own code.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LISTENS = "HAM_RAY_TEST_WARM"  # a variable of Ray's processes: the socket of the loaded process


@contextlib.contextmanager
def loaded(environment: dict[str, str]) -> Iterator[None]:
    """Start the process that workers are forked from, and let a Ray that is started now take them from there.

    Args:
        environment: what Ray's workers have to have in their environment when they load Keras and TensorFlow.
    """
    from pytest import MonkeyPatch
    from ray._private import ray_constants

    with MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp") as folder:  # sockets: a short path
        path = Path(folder) / "warm"
        command = [sys.executable, __file__, str(path)]
        process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
        patch.setenv(_LISTENS, str(path))
        patch.setattr(ray_constants, "SETUP_WORKER_FILENAME", __file__)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def _serve(path: str) -> None:
    """Fork a worker for each request, for as long as the tests run, having loaded everything at the first one."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    while True:
        asking, _ = listening.accept()
        words, files, _, _ = socket.recv_fds(asking, 2**20, 2)
        request = json.loads(words)
        if "ray" not in sys.modules:
            os.environ.update(request["environment"])  # Ray's C++ code reads it once
            _load()
        if os.fork() == 0:
            listening.close()
            asking.close()
            _become(request, files)
            break
        for file in (*files, asking.detach()):
            os.close(file)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _load() -> None:
    """Load what workers need and takes long, but no ray.data, ray.train or ray.tune.

    These draw random numbers in Ray's C++ code, and workers that went on from there would all draw the same ids.
    """
    import keras  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import ray  # noqa: F401
    import sklearn.linear_model
    import sklearn.metrics  # noqa: F401  # and scipy.stats with it: two seconds
    import tensorflow  # noqa: F401


def _become(request: dict, files: list[int]) -> None:
    """Make this process what it would have been as a process of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[:] = request["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(":"))


def _start(words: list[str]) -> None:
    """Have a worker forked with the environment and the output of this process; what Ray runs."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    known, rest = parser.parse_known_args(words)
    asked = json.loads(known.serialized_runtime_env_context)
    plain = asked.get("py_executable") in (None, sys.executable)
    if not plain or any(value for name, value in asked.items() if name not in ("env_vars", "py_executable")):
        spec = importlib.util.find_spec("ray")
        setup = Path(spec.origin).parent / "_private" / "workers" / "setup_worker.py"
        os.execv(sys.executable, [sys.executable, str(setup), *words])
    environment = {**os.environ, **asked.get("env_vars", {})}
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(os.environ[_LISTENS])
        request = {"words": rest, "folder": str(Path.cwd()), "environment": environment}
        socket.send_fds(other, [json.dumps(request).encode()], [1, 2])
        other.recv(1)  # until it has them


if __name__ == "__main__":
    _serve(sys.argv[1]) if len(sys.argv) == 2 else _start(sys.argv[1:])
