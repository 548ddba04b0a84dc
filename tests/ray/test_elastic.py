"""An elastic training on hosts that go and come: as many workers as there are nodes for, and the losses of one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from here import train_here
from hosts import ROOT, Hosts
from test_node_loss import said

from ham_ray.data.images import open_images
from ham_ray.data.ingest import ingest
from ham_ray.data.sample import write_sample
from ham_ray.recipe import baseline

pytestmark = [pytest.mark.ray, pytest.mark.long]
EPOCHS = 70  # short ones, and enough for a host to join meanwhile
CHANGES = {"batch_size": 12, "learning_rate": 2e-5, "epochs": EPOCHS, "patience": 0}


def test_workers_go_with_a_host_and_come_with_another(make_hosts, tmp_path: Path):
    archive = write_sample(tmp_path / "sample.zip", lesions=200, size=(40, 30))
    uri = ingest(archive, tmp_path / "images", size=32).uri
    made: Hosts = make_hosts(cpus=(1, 1, 1, 1))
    made[3].kill()
    made.wait_for_nodes()
    settings = [f"--set={name}={value}" for name, value in CHANGES.items() if name != "epochs"]
    command = [
        "jobs/baseline.py",
        "--data",
        uri,
        "--families",
        "simple_cnn",
        "--workers",
        "1-4",
        "--precision",
        "float32",
    ]
    command += ["--epochs", EPOCHS, "--name", "elastic", "--out", tmp_path / "runs", *settings]
    out = tmp_path / "stdout"
    with out.open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
        job = made[0].start([sys.executable, *command], cwd=ROOT, stdout=stdout, stderr=stderr)
        said(out, "simple_cnn: epoch 2/", 240, job)
        assert "simple_cnn: 3 worker(s)" in out.read_text()
        made[2].kill()  # for good
        printed = said(out, "simple_cnn: 2 worker(s)", 240, job)
        assert "going on from its latest checkpoint with the nodes that are there" in printed
        done = printed.count("simple_cnn: epoch ")
        said(out, f"simple_cnn: epoch {done + 2}/", 240, job)
        made[3].boot()
        made[3].start_ray()
        printed = said(out, "room for 3 workers, from the end of this epoch", 240, job)
        printed = said(out, "report: ", 400, job)
        assert job.wait(60) == 0, (tmp_path / "stderr").read_text()
    assert re.findall(r"^simple_cnn: (\d) worker\(s\) ×", printed, re.MULTILINE) == ["3", "2", "3"]
    epochs = re.findall(r"^simple_cnn: epoch (\d+)/\d+, loss", printed, re.MULTILINE)
    assert epochs == [str(epoch + 1) for epoch in range(EPOCHS)]
    history = pd.read_parquet(tmp_path / "runs" / "elastic" / "simple_cnn" / "history.parquet")
    alone = train_here(baseline("simple_cnn").changed(**CHANGES), open_images(uri), tmp_path / "alone").history
    for name in ("train_loss", "validation_loss"):
        # workers add up in another order, and each step makes the difference larger; other batches differ by .04
        np.testing.assert_allclose(history[name], alone[name], rtol=5e-3)
