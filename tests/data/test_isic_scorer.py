"""Agreement with the ISIC challenge's own scorer, where a Python that has it is named (it wants pandas before 3):

python -m venv isic && isic/bin/pip install 'pandas<2.2' 'numpy<2' isic-challenge-scoring
HAM_RAY_ISIC_PYTHON=isic/bin/python make test
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES, CODES, DIAGNOSES, ISIC

from ham_ray.evaluation import isic, metrics
from ham_ray.evaluation.assessment import assess
from ham_ray.evaluation.predictions import arrays, predictions

SCORER = os.environ.get("HAM_RAY_ISIC_PYTHON")
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(SCORER is None, reason="HAM_RAY_ISIC_PYTHON is not set: no Python with isic-challenge-scoring"),
]
CALL = """
import json, pathlib, sys
from isic_challenge_scoring.classification import ClassificationMetric, ClassificationScore
score = ClassificationScore.from_file(*map(pathlib.Path, sys.argv[1:3]), ClassificationMetric.BALANCED_ACCURACY)
by_class = {name: score.per_category[name].to_dict() for name in ("auc", "ap")}
print(json.dumps({"overall": score.overall, **by_class}))
"""


def scored(frame: pd.DataFrame, folder: Path) -> dict:
    """What the scorer says of the table that this project writes of PREDICTIONS."""
    truth = pd.DataFrame({"image": frame["image_id"]})
    for label, diagnosis in enumerate(DIAGNOSES):
        truth[diagnosis.isic] = (frame["y_true"] == label).astype(float)
    (folder / "truth.csv").write_bytes(truth[["image", *ISIC]].to_csv(index=False).encode())
    (folder / "predictions.csv").write_bytes(isic.to_csv(frame))
    assert SCORER is not None
    ran = subprocess.run(
        [SCORER, "-W", "ignore", "-c", CALL, str(folder / "truth.csv"), str(folder / "predictions.csv")],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def table(p: np.ndarray, label: np.ndarray) -> pd.DataFrame:
    names = [f"ISIC_{place:07d}" for place in range(len(p))]
    rows = pd.DataFrame({"image_id": names, "lesion_id": None, "group_id": names, "fold": -1, "label": label})
    return predictions(rows, "new", p, CLASSES)


def test_balanced_accuracy_auc_and_average_precision_agree(tmp_path: Path):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 7, 400)
    p = rng.dirichlet(np.full(7, 0.05), 400) * 0.4 + 0.6 * np.eye(7)[np.where(rng.random(400) < 0.5, label, 5)]
    assert (p < 1e-9).sum() > 100
    frame = table(p / p.sum(axis=1, keepdims=True), label)
    found, (truth, given) = scored(frame, tmp_path), arrays(frame)
    assert metrics.balanced_accuracy(truth, given) == pytest.approx(found["overall"], abs=1e-9)
    for place, (dx, diagnosis) in enumerate(zip(CODES, DIAGNOSES, strict=True)):
        assert metrics.class_auc(truth, given, place) == pytest.approx(found["auc"][diagnosis.isic], abs=1e-9), dx
        assert metrics.average_precision(truth, given, place) == pytest.approx(found["ap"][diagnosis.isic], abs=1e-9)


def test_always_nv_scores_one_in_seven_in_both(tmp_path: Path):
    label = np.arange(70) % 7
    frame = table(np.eye(7)[np.full(70, CODES.index("nv"))], label)
    assert scored(frame, tmp_path)["overall"] == pytest.approx(1 / 7, abs=1e-12)
    assert metrics.balanced_accuracy(*arrays(frame)) == pytest.approx(1 / 7, abs=1e-12)


def test_ties_are_counted_as_this_project_calls_them(tmp_path: Path):
    label = np.array([0, 1, 2, 3, 4, 5, 6, 0])
    p = np.eye(7)[label] * 0.5 + np.eye(7)[(label + 1) % 7] * 0.5
    frame = table(p, label)
    assert scored(frame, tmp_path)["overall"] == pytest.approx(metrics.balanced_accuracy(*arrays(frame)), abs=1e-12)


def test_the_image_that_was_never_published_weighs_nothing(tmp_path: Path):
    label = np.arange(71) % 7
    frame = table(np.eye(7)[np.where(np.arange(71) < 70, label, (label + 1) % 7)], label)
    frame.loc[70, ["image_id", "group_id"]] = "ISIC_0035068"
    assert scored(frame, tmp_path)["overall"] == 1.0
    assert assess(frame).metrics["balanced_accuracy"] == 1.0
