"""Work that earlier code began goes on under this one, by the same command, and ends as it would have ended there.

`tests/begun` was made by commit 0a2c246, see its README.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from searching import small_search
from test_baseline_job import options

from ham_ray.data.images import Images, open_images
from ham_ray.search import ownership
from ham_ray.workflows.steps import baselines, tuning

pytestmark = pytest.mark.ray
BEGUN = Path(__file__).parents[1] / "begun"
LOSSES = ["epoch", "train_loss", "validation_loss"]  # scores of 17 images jump where two classes are level


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """What was begun, to go on with."""
    shutil.copytree(BEGUN, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def images(out: Path) -> Images:
    return open_images(out / "images")


def expected(name: str) -> pd.DataFrame:
    """The epochs of a run that was left alone."""
    table = pd.read_parquet(BEGUN / "expected.parquet")
    return table[table["run"] == name].drop(columns="run").reset_index(drop=True)


def assert_same_epochs(history: pd.DataFrame, name: str) -> None:
    np.testing.assert_allclose(history[LOSSES], expected(name)[LOSSES], rtol=2e-3, atol=1e-6)


def test_baselines_go_on_in_the_folder_that_their_settings_name(cluster: str, images: Images, out: Path, capsys):
    changes = ["batch_size=16", "hidden_units=0", "patience=0"]
    families = "simple_cnn,resnet50_frozen"
    more = {"name": None, "weights": ["none"], "epochs": 60}
    _, report = baselines.run(options(images, out, families=families, changes=changes, **more))
    folder = Path(report).parent
    printed = capsys.readouterr().out
    assert folder.name == "baseline-3e330244"
    assert "already finished: reading its results" in printed
    assert "resnet50_frozen: going on after epoch" in printed
    assert_same_epochs(pd.read_parquet(folder / "simple_cnn" / "history.parquet"), "simple_cnn")
    assert_same_epochs(pd.read_parquet(folder / "resnet50_frozen" / "history.parquet"), "resnet50_frozen")


def test_a_search_goes_on_in_its_trial(cluster: str, images: Images, out: Path, monkeypatch, capsys):
    monkeypatch.setattr(ownership, "DEAD", 1.0)  # its owner was a process of another machine, which might be alive
    found = tuning.run(small_search(out, out / "space.yaml", data=images.uri, trials=2, name=None))
    printed = capsys.readouterr().out
    assert Path(found.place).name == "search-space-074d014f"
    assert "1 of 2 trials finished" in printed
    assert found.trials["state"].tolist() == ["complete", "complete"]
    history = pd.read_json(out / "search-space-074d014f" / "trial-0001" / "history.json")
    assert_same_epochs(history, "trial-0001")
    assert found.trials["macro_f1"][1] == pytest.approx(history["validation_macro_f1"].max())
