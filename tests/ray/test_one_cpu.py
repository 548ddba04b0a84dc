"""A cluster of a single CPU: whatever decodes finds room beside whatever computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ham_ray.data.images import Images

pytestmark = [pytest.mark.ray, pytest.mark.long]
JOB = """
import sys
from pathlib import Path

import numpy as np
import ray

from ham_ray.cluster import cluster_resources, configure_data
from ham_ray.data.images import open_images
from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM
from ham_ray.inference.pipeline import predict_rows
from ham_ray.recipe import baseline
from ham_ray.training import activations, input_pipeline, workers

images, folder = open_images(sys.argv[1]), Path(sys.argv[2])
ray.init(num_cpus=1, log_to_driver=False)
configure_data()
frozen = baseline("resnet50_frozen").changed(epochs=1, batch_size=32)
assert activations.prepare(images, input_pipeline.split_rows(images, frozen), frozen, RANDOM, str(folder), 2**30)
print("activations built", flush=True)
recipe = baseline("simple_cnn").changed(epochs=1, batch_size=32)
parts = input_pipeline.split(images, recipe, 1, shard_memory=0)
outcome = workers.train(recipe, images, parts, RANDOM, cluster_resources(1), str(folder / "run"))
print("trained on a stream:", outcome.failed, len(outcome.history), flush=True)
rows = images.fold(recipe.data.test_fold)
found = predict_rows(str(folder / "run" / "model.keras"), images, rows)
assert np.allclose(found, outcome.probabilities["test"], atol=1e-5)
print("predicted", flush=True)
"""


def test_activations_a_streamed_training_and_a_prediction_end(images: Images, tmp_path: Path):
    job = subprocess.run(
        [sys.executable, "-c", JOB, images.uri, str(tmp_path)], capture_output=True, text=True, timeout=900
    )
    assert job.returncode == 0, job.stderr[-3000:]
    for line in ("activations built", "trained on a stream: None 1", "predicted"):
        assert line in job.stdout.splitlines()
