"""A host is lost in the middle of activations and of a prediction: the work goes on with what is left, and says so."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from hosts import Hosts

from ham_ray.data.images import Images
from ham_ray.data.ingest import ingest
from ham_ray.data.sample import write_sample

pytestmark = [pytest.mark.ray, pytest.mark.long]

# Slow chunks, so that each host gets some before all are done, and one that is computed again takes longer than a look
# at the nodes. A file says that a host has begun one: when it is lost then, its chunk is too. The classes lie in the
# script: they go to actors by value.
WORK = """
import sys, time
from pathlib import Path

import numpy as np
import ray

from ham_ray.cluster import Resources, connected
from ham_ray.data.gallery import TableGallery, TableStretch
from ham_ray.data.images import open_images
from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM
from ham_ray.inference import pipeline
from ham_ray.recipe import baseline
from ham_ray.training import activations, input_pipeline, workers

images, folder = open_images(sys.argv[1]), Path(sys.argv[2])
pipeline.CHUNK_IMAGES, activations.BLOCK = 8, 8

def begun(what):
    (folder / f"{what}-{ray.util.get_node_ip_address()}").touch()

class SlowStretch(TableStretch):
    def load(self):
        begun("prediction")
        time.sleep(4)
        return TableStretch.load(self)

class SlowGallery(TableGallery):
    def stretch(self, rows):
        return SlowStretch(**vars(TableGallery.stretch(self, rows)))

class SlowBuilder(activations._Builder):
    def __init__(self, *arguments):
        activations.BLOCK = 8  # in the actor too
        activations._Builder.__init__(self, *arguments)

    def __call__(self, block):
        begun("activations")
        time.sleep(6)
        return activations._Builder.__call__(self, block)

activations._Builder = SlowBuilder
frozen = baseline("resnet50_frozen").changed(epochs=1, batch_size=16)
network = build(baseline("simple_cnn"), images.size, RANDOM, 7)
network.classifier().save(folder / "model.keras")
recipe = baseline("simple_cnn").changed(epochs=1, batch_size=16)
with connected():
    tables = activations.prepare(images, input_pipeline.split_rows(images, frozen), frozen, RANDOM, str(folder), 2**30)
    print("activations done", flush=True)
    gallery, way = SlowGallery(images), pipeline.InferenceConfig(({str(folder / "model.keras"): 1.0},), (images.size,))
    numbers = range(len(pipeline.chunks(gallery, images.size)))
    found = {}
    for number, table in pipeline.predicted(gallery, way, numbers):
        assert number not in found
        found[number] = table
        print("predicted", number, flush=True)
    assert sorted(found) == [*numbers] and sum(map(len, found.values())) == len(images.rows)
    print("prediction done", flush=True)
    parts = input_pipeline.split(images, recipe, 2, 1e9)
    outcome = workers.train(recipe, images, parts, RANDOM, Resources(2, 1.0, False, ""), str(folder / "run"))
    print("training done", outcome.failed, flush=True)
"""


def said(file: Path, line: str, seconds: float, process) -> str:
    """All that was printed, once the line was."""
    deadline = time.monotonic() + seconds
    while line not in (told := file.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, f"no {line!r} in:\n{told}"
        time.sleep(0.1)
    return told


def exists(file: Path, process) -> None:
    """Wait until the file is there."""
    deadline = time.monotonic() + 200
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline, f"no {file.name}"
        time.sleep(0.05)


def test_work_goes_on_when_hosts_are_lost_and_when_one_joins(make_hosts, tmp_path: Path):
    archive = write_sample(tmp_path / "sample.zip", lesions=140, size=(40, 30))
    images: Images = ingest(archive, tmp_path / "images", size=32)
    made: Hosts = make_hosts(cpus=(1, 1, 1))
    out = tmp_path / "stdout"
    with out.open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
        job = made[0].start([sys.executable, "-c", WORK, images.uri, tmp_path], stdout=stdout, stderr=stderr)
        exists(tmp_path / "activations-10.88.0.3", job)
        made[2].kill()
        said(out, "activations: node 10.88.0.3 is gone", 60, job)
        exists(tmp_path / "prediction-10.88.0.2", job)
        made[1].kill()
        said(out, "prediction: node 10.88.0.2 is gone", 60, job)
        told = said(out, "prediction done", 180, job)
        assert told.count("predicted ") == len({line for line in told.splitlines() if line.startswith("predicted ")})
        told = said(out, "run: waiting for the next epoch of 2 worker(s) × 1 CPU since ", 120, job)
        assert "1 node(s) with 1 CPUs are there" in told
        made[1].boot()
        made[1].start_ray()
        said(out, "training done None", 180, job)
        assert job.wait(60) == 0, (tmp_path / "stderr").read_text()
