"""Jobs on two hosts: work is on both, what one of them does not see is refused in one line."""

from __future__ import annotations

import contextlib
import sys
import time

import psutil
import pytest
from hosts import ROOT, Host, Hosts

from ham_ray.data.sample import write_sample

pytestmark = [pytest.mark.ray, pytest.mark.long]

REFUSED = """
import sys
from ham_ray.cluster import connected
from ham_ray.workflows.steps import choices, predicting
from ham_ray.data.ingest import ingest
from ham_ray.errors import UserError
from ham_ray.workflows.predict import Options

archive, table, model, shared = sys.argv[1:]
def predict(model, images):
    return predicting.run(Options(models=[model], images=images, out="/tmp/p.csv", format="csv", precision="float32"))
jobs = {
    "ingest": lambda: ingest(archive, "/tmp/out"),
    "table": lambda: choices.images(table, "/tmp/out", 32, False, []),
    "archive": lambda: choices.images(archive, "/tmp/out", 32, False, []),
    "images": lambda: predict(model, archive),
    "model": lambda: predict(model, shared),
}
with connected():
    for name, job in jobs.items():
        try:
            job()
        except UserError as error:
            print(f"refused {name}: {error}")
"""
COPY = """
import shutil, sys
from pathlib import Path
shared, run, table = sys.argv[1:]
shutil.copy(Path(shared, "sample.zip"), "/tmp/sample.zip")
shutil.copytree(run, "/tmp/model")
shutil.copytree(table, "/tmp/table")
"""


def job(*words: object) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / str(words[0])), *map(str, words[1:])]


def has_worker(host: Host) -> bool:
    """Whether a training worker runs there."""
    found = False
    for process in host.processes():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            found = found or "RayTrainWorker" in " ".join(process.cmdline())
    return found


def test_two_workers_are_on_two_hosts_and_the_sample_needs_no_shared_folder(two_hosts: Hosts):
    """README's own command: no data, several workers; the sample is drawn on the head, where its /tmp is."""
    out = two_hosts.shared / "runs"
    words = ("--smoke", "--families", "simple_cnn", "--workers", 2, "--name", "both", "--out", out)
    with (two_hosts.shared / "stdout").open("w+") as stdout, (two_hosts.shared / "stderr").open("w+") as stderr:
        process = two_hosts[0].start(job("baseline.py", *words), stdout=stdout, stderr=stderr)
        seen = set()
        while process.poll() is None:
            seen |= {host.address for host in two_hosts if has_worker(host)}
            time.sleep(0.5)
        stdout.seek(0)
        stderr.seek(0)
        told, errors = stdout.read(), stderr.read()
    assert process.returncode == 0, errors
    assert seen == {"10.88.0.1", "10.88.0.2"}
    assert "spread: 1 on 10.88.0.1, 1 on 10.88.0.2" in told
    assert "images: 431 of synthetic.zip" in told
    assert (out / "both" / "simple_cnn" / "predictions.parquet").exists()


def test_what_one_host_does_not_see_is_refused_by_every_job(two_hosts: Hosts):
    head, shared, runs = two_hosts[0], two_hosts.shared, two_hosts.shared / "runs"
    archive = write_sample(shared / "sample.zip", lesions=70, size=(40, 30))
    copy = [sys.executable, "-c", COPY, shared, runs / "both" / "simple_cnn", runs / "images" / "synthetic-32"]
    assert head.run(copy, 60).returncode == 0
    words = [sys.executable, "-c", REFUSED, "/tmp/sample.zip", "/tmp/table", "/tmp/model", archive]
    done = head.run(words, 300)
    assert done.returncode == 0, done.stderr
    blind = "1 of 2 nodes do not see it; put it on a path that all nodes share"
    assert [line for line in done.stdout.splitlines() if line.startswith("refused")] == [
        f"refused ingest: archive /tmp/sample.zip: {blind}",
        f"refused table: --data /tmp/table: {blind}",
        f"refused archive: --data /tmp/sample.zip: {blind}",
        f"refused images: --images /tmp/sample.zip: {blind}",
        f"refused model: --model /tmp/model/model.keras: {blind}",
    ]
