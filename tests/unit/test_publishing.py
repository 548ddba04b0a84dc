"""What is said while runs are put beside the trivial baselines."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ham10000 import CLASSES

from ham_ray.cluster import plan
from ham_ray.evaluation import predictions
from ham_ray.models import registry
from ham_ray.models.network import build
from ham_ray.models.saving import save
from ham_ray.models.weights import RANDOM
from ham_ray.recipe import Recipe, baseline
from ham_ray.report.summary import Run
from ham_ray.training import input_pipeline
from ham_ray.workflows.steps.context import TrainingContext
from ham_ray.workflows.steps.publishing import publish

pytestmark = pytest.mark.unit


def finished(images, recipe: Recipe) -> Run:
    """A run whose probabilities are drawn."""
    rng = np.random.default_rng(0)
    rows = input_pipeline.split_rows(images, recipe)
    tables = [
        predictions.predictions(
            rows[name], name, rng.dirichlet(np.ones(7), len(rows[name])).astype(np.float32), CLASSES
        )
        for name in ("validation", "test")
    ]
    info = {"weights": "from scratch", "minutes": 1.0, "commit": "abc", "warnings": [], "recipe": recipe.flat()}
    return Run(pd.concat(tables, ignore_index=True), None, info)


def test_each_long_step_is_said_with_how_long_it_took(images, tmp_path: Path, capsys: pytest.CaptureFixture):
    recipe = baseline("simple_cnn")
    context = TrainingContext(images, {}, plan(1, [2.0]), str(tmp_path), 1e9, str(tmp_path), 0)
    publish({"simple_cnn": finished(images, recipe)}, context, [recipe], "Baselines", {})
    said = capsys.readouterr().out.split("\n")
    steps = [line.split(":")[0] for line in said if re.fullmatch(r"[a-z, ]+: \d+ s", line)]
    assert steps == ["trivial baselines", "figures, intervals, comparisons", "report"]
    assert [line.split(" (")[0].removesuffix(" …") for line in said if line.endswith(" …")] == steps
    assert (tmp_path / "report.html").exists() and (tmp_path / "model_card.md").exists()


@pytest.mark.parametrize("sheets", [1, 0])
def test_a_model_without_a_saliency_map_costs_its_page_that_figure_alone(
    images, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, sheets: int
):
    recipe, model = baseline("simple_cnn"), tmp_path / "model.keras"
    save(build(recipe, images.size, RANDOM, 7).classifier(), model, CLASSES.codes)
    if not sheets:
        without = dataclasses.replace(registry.architecture("simple_cnn"), saliency=None)
        monkeypatch.setitem(registry._ARCHITECTURES, "simple_cnn", without)
    context = TrainingContext(images, {}, plan(1, [2.0]), str(tmp_path), 1e9, str(tmp_path), 0)
    publish({"simple_cnn": finished(images, recipe)}, context, [recipe], "Baselines", {"simple_cnn": str(model)})
    assert (tmp_path / "report.html").read_text().count('<img class="sheet"') == sheets
    assert ("saliency maps: none of simple_cnn" in capsys.readouterr().out) == (not sheets)
