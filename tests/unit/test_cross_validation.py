"""Cross-validation: each image is a test image once, of a model that did not learn from it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES, LABELS

from ham_ray.cluster import plan
from ham_ray.data.images import Images
from ham_ray.evaluation.assessment import operating_points
from ham_ray.evaluation.predictions import predictions
from ham_ray.recipe import Recipe, baseline
from ham_ray.report.summary import Run
from ham_ray.training import input_pipeline
from ham_ray.workflows.baseline import Options
from ham_ray.workflows.steps import baselines, comparison, trainings
from ham_ray.workflows.steps.comparison import cross_validate, pool
from ham_ray.workflows.steps.context import TrainingContext

pytestmark = pytest.mark.unit


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, images: Images) -> dict[str, Recipe]:
    """Trainings that only draw their predictions; what was to be trained."""
    asked: dict[str, Recipe] = {}

    def train(recipes: dict[str, Recipe], context: TrainingContext, at_once: int) -> dict[str, Run]:
        asked.update(recipes)
        return {name: Run(drawn(recipe), None, {"minutes": 1.0}) for name, recipe in recipes.items()}

    def drawn(recipe: Recipe) -> pd.DataFrame:
        rows = input_pipeline.split_rows(images, recipe)
        rng = np.random.default_rng(recipe.data.test_fold)
        return pd.concat(
            [predictions(rows[s], s, rng.dirichlet(np.ones(7), len(rows[s])), CLASSES) for s in ("validation", "test")],
            ignore_index=True,
        )

    monkeypatch.setattr(comparison, "train", train)
    return asked


def test_each_fold_calls_melanoma_by_the_thresholds_of_its_own_validation_images():
    """Folds of two melanomas and two nevi, whose models give the same images other probabilities."""

    def run(fold: int, validation: list[float], test: list[float] | None = None) -> Run:
        labels = [LABELS["mel"]] * 2 + [LABELS["nv"]] * 2
        tables = []
        for split, melanoma in (("validation", validation), ("test", test or validation)):
            p = np.zeros((4, 7))
            p[:, LABELS["mel"]] = melanoma
            p[:, LABELS["bkl"]] = 1 - p[:, LABELS["mel"]]
            names = [f"{split} {fold} {place}" for place in range(4)]
            rows = {"image_id": names, "lesion_id": names, "group_id": names, "fold": fold, "label": labels}
            tables.append(predictions(pd.DataFrame(rows), split, p, CLASSES))
        return Run(pd.concat(tables, ignore_index=True), None, {})

    other = pool([run(0, [0.9, 0.8, 0.5, 0.1], [0.85, 0.6, 0.82, 0.1])]).predictions
    assert other is not None
    assert other["mel_sensitivity_95"].tolist() == [True, False, True, False]  # from 0.8 on, as on validation
    pooled = pool([run(0, [0.9, 0.8, 0.5, 0.1]), run(1, [0.4, 0.3, 0.2, 0.1])]).predictions
    assert pooled is not None
    assert pooled["mel_sensitivity_95"].tolist() == [True, True, False, False] * 2
    assert operating_points(pooled)["sensitivity_95"].specificity.value == 1.0  # type: ignore[union-attr]


def test_each_image_is_a_test_image_once(trained, images: Images, tmp_path):
    context = TrainingContext(images, {}, plan(1, [2.0]), str(tmp_path), 1e9, str(tmp_path), 0)
    found = cross_validate({"simple_cnn": baseline("simple_cnn")}, context)
    assert [recipe.data.test_fold for recipe in trained.values()] == [0, 1, 2, 3, 4]
    assert [recipe.data.validation_fold for recipe in trained.values()] == [1, 2, 3, 4, 0]
    same = {"test_fold": 0, "validation_fold": 1}
    assert all(recipe.changed(**same) == baseline("simple_cnn") for recipe in trained.values())
    assert [*trained] == [f"simple_cnn-fold-{fold}" for fold in range(5)]
    rows = {row.name: row for row in found.rows}
    assert set(rows) == {"simple_cnn", "always_nv", "thumbnail_logistic"}
    assert {row.split for row in rows.values()} == {f"folds 0, 1, 2, 3, 4, {len(images.rows)} images, lesion-grouped"}
    assert rows["simple_cnn"].minutes == 5.0
    page = (tmp_path / "report.html").read_text()
    assert "on the fold after each test fold" in page and "each a test image once" in page
    assert json.loads((tmp_path / "summary.json").read_text())["rows"][0]["name"] == "simple_cnn"


def test_images_of_elsewhere_are_predicted_by_the_models_of_all_splits(trained, images: Images, tmp_path, monkeypatch):
    asked = []

    def tested(externals, models: dict[str, list[str]], out: str) -> dict[str, Run]:
        asked.append((externals, models))
        return {}

    monkeypatch.setattr(comparison, "tested", tested)
    context = TrainingContext(images, {}, plan(1, [2.0]), str(tmp_path), 1e9, str(tmp_path), 0)
    cross_validate({"simple_cnn": baseline("simple_cnn")}, context, externals=["a set"])  # type: ignore[list-item]
    folders = [str(tmp_path / f"simple_cnn-fold-{fold}") for fold in range(5)]
    assert asked == [(["a set"], {"simple_cnn": folders})]


def test_a_family_with_a_failed_training_has_its_reason_and_no_figures(trained, images: Images):
    good = Run(pd.DataFrame({"split": ["test"]}), None, {"minutes": 1.0})
    found = pool([good, Run(None, None, {"warnings": ["stopped: loss is nan"]}), good])
    assert found.predictions is None and found.info["warnings"] == ["stopped: loss is nan"]


def test_trainings_at_once_as_many_as_fit_and_none_gives_its_gpu_up(monkeypatch: pytest.MonkeyPatch):
    def at_once(cpus: list[float], gpus: int, crossed: bool = True) -> int:
        options = Options(families="a,b", cross_validate=crossed, workers=2)
        monkeypatch.setattr(baselines, "cluster_resources", lambda n, share, grows: plan(n, cpus, gpus, share, grows))
        found, count = baselines._resources(options)
        assert found.workers == 2 and found.cpus_per_worker >= min(1.0, sum(cpus) / 4)
        return count

    assert at_once([2.0], 0) == 1
    assert at_once([9.0], 0) == 4
    assert at_once([64.0], 0) == 10
    assert at_once([64.0], 6) == 3
    assert at_once([64.0], 0, crossed=False) == 1


def test_several_trainings_run_side_by_side_and_come_back_in_order(monkeypatch: pytest.MonkeyPatch, images, tmp_path):
    import threading

    barrier = threading.Barrier(2, timeout=10)  # passed only if two are at work at the same time

    def train_one(name: str, *rest) -> Run:
        barrier.wait()
        return Run(None, None, {"name": name})

    monkeypatch.setattr(trainings, "_train", train_one)
    context = TrainingContext(images, {}, plan(1, [2.0]), str(tmp_path), 1e9, str(tmp_path), 0)
    recipes = {name: baseline("simple_cnn").changed(seed=seed) for seed, name in enumerate("abcd")}
    found = trainings.train(recipes, context, at_once=2)
    assert [run.info["name"] for run in found.values()] == [*recipes] == [*"abcd"]
