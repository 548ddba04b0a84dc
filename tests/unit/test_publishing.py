"""What is said while runs are put beside the trivial baselines."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ham_ray.cluster import plan
from ham_ray.evaluation import predictions
from ham_ray.evaluation.summary import Run
from ham_ray.experiments.publishing import publish
from ham_ray.experiments.setting import Setting
from ham_ray.recipe import baseline
from ham_ray.training import feed

pytestmark = pytest.mark.unit


def test_each_long_step_is_said_with_how_long_it_took(images, tmp_path: Path, capsys: pytest.CaptureFixture):
    recipe, rng = baseline("simple_cnn"), np.random.default_rng(0)
    rows = feed.split_rows(images, recipe)
    tables = [
        predictions.predictions(rows[name], name, rng.dirichlet(np.ones(7), len(rows[name])).astype(np.float32))
        for name in ("validation", "test")
    ]
    info = {"weights": "from scratch", "minutes": 1.0, "commit": "abc", "warnings": [], "recipe": recipe.model_dump()}
    run = Run(pd.concat(tables, ignore_index=True), None, info)
    setting = Setting(images, {}, plan(1, [2.0]), str(tmp_path), 1e9, str(tmp_path), 0)
    publish({"simple_cnn": run}, setting, [recipe], "Baselines", {})
    said = capsys.readouterr().out.split("\n")
    steps = [line.split(":")[0] for line in said if re.fullmatch(r"[a-z, ]+: \d+ s", line)]
    assert steps == ["trivial baselines", "figures, intervals, comparisons", "report"]
    assert [line.split(" (")[0].removesuffix(" …") for line in said if line.endswith(" …")] == steps
    assert (tmp_path / "report.html").exists() and (tmp_path / "model_card.md").exists()
