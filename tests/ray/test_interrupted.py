"""Ctrl-C while a job's own Ray runs, where process 1 reaps nobody, as in a container without an init."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hosts import lacking

pytestmark = [pytest.mark.ray, pytest.mark.long]
ROOT = Path(__file__).parents[2]
JOB = """
import time
from ham_ray import console
def main() -> None:
    import ray
    from ham_ray.cluster import connected
    with connected():
        ray.get(ray.remote(lambda: 1).remote())
        print("at work", flush=True)
        time.sleep(1000)
console.run(main, "Ray", "all is kept; the same command goes on")
"""
INIT = """
import json, os, signal, subprocess, sys
pipe = subprocess.PIPE
job = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=pipe, stderr=pipe, text=True, start_new_session=True)
out = [job.stdout.readline() for line in range(3)]
before = sum(name.isdigit() for name in os.listdir("/proc"))
os.killpg(job.pid, signal.SIGINT)
rest, err = job.communicate()
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
left = [open(f"/proc/{name}/stat").read() for name in others]
print(json.dumps([out, before, job.returncode, rest, err, left]))
"""


def test_ctrl_c_ends_a_job_and_all_of_its_ray_where_nobody_reaps():
    if reason := lacking():
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # Ray's sockets want a short path
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", INIT, JOB],
            env={**environment, "TMPDIR": folder, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        out, before, code, rest, err, left = json.loads(done.stdout)
        assert out == ["loading Ray …\n", "starting Ray …\n", "at work\n"]
        assert before > 8  # Ray's own among them
        assert (code, rest, err) == (130, "", "interrupted: all is kept; the same command goes on\n")
        assert left == []
        assert not list(Path(folder).glob("ham_ray-*"))
