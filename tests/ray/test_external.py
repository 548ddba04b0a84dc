"""Tests of finished models on images of elsewhere, of which those that the models know are left out."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from elsewhere import KNOWN
from ham10000 import PROBABILITIES
from test_baseline_job import options

from ham_ray.data.images import Images, open_images, read_pixels
from ham_ray.errors import UserError
from ham_ray.evaluation import predictions
from ham_ray.evaluation.calibration import Calibration
from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM
from ham_ray.recipe import baseline
from ham_ray.runs import MODEL
from ham_ray.workflows.steps import baselines, external

pytestmark = pytest.mark.ray
FITTED = Calibration(0.5, 0.3, (0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.1))


def test_images_lesions_and_pixels_that_are_known_are_left_out(elsewhere: Path, images: Images, tmp_path: Path, capsys):
    (one,) = external.opened([str(elsewhere)], str(tmp_path), images)
    assert one.left_out == KNOWN == len(one.images.rows) - len(one.rows)
    for name in ("image_id", "lesion_id", "pixel_hash"):
        assert not set(one.rows[name]) & set(images.rows[name])
    assert f"{len(one.rows)} images; 4 left out" in capsys.readouterr().out


def test_a_set_of_other_size_or_with_nothing_new_is_refused(elsewhere: Path, images: Images, tmp_path: Path):
    (one,) = external.opened([str(elsewhere)], str(tmp_path), images)
    with pytest.raises(UserError, match="each of its .* images is one of --data"):
        external.opened([images.uri], str(tmp_path), images)
    larger = Images(images.uri, {**images.card, "size": 48}, images.rows)
    with pytest.raises(UserError, match=r"a table of 32 px \(crop\), --data has 48 px \(crop\)"):
        external.opened([one.images.uri], str(tmp_path), larger)


def test_models_are_calibrated_each_by_itself_and_averaged(
    cluster: str, elsewhere: Path, images: Images, tmp_path: Path
):
    runs = [tmp_path / name for name in ("first", "second")]
    for seed, run in enumerate(runs):
        run.mkdir()
        build(baseline("simple_cnn").changed(seed=seed), 32, RANDOM, 7).classifier().save(run / MODEL)
    (runs[0] / "calibration.json").write_text(json.dumps(vars(FITTED)))
    (one,) = external.opened([str(elsewhere)], str(tmp_path), images)
    found = external.tested([one], {"both": [str(run) for run in runs]}, str(tmp_path))["both on elsewhere"].predictions
    assert found is not None and set(found["split"]) == {"new"}
    assert found["image_id"].tolist() == one.rows["image_id"].tolist()
    first, second = (
        np.asarray(keras.models.load_model(run / MODEL)(read_pixels(one.images, one.rows))) for run in runs
    )
    np.testing.assert_allclose(found[list(PROBABILITIES)], (FITTED.apply(first) + second) / 2, atol=1e-5)
    np.testing.assert_array_equal(found["y_true"], one.rows["label"])
    (runs[0] / "calibration.json").unlink()  # another model under the same name, as a search's next winner is
    again = external.tested([one], {"both": [str(run) for run in runs]}, str(tmp_path))["both on elsewhere"].predictions
    np.testing.assert_allclose(again[list(PROBABILITIES)], (first + second) / 2, atol=1e-5)


def test_a_baseline_is_tested_on_it_and_says_what_was_left_out(
    cluster: str, elsewhere: Path, images: Images, tmp_path: Path
):
    chosen = options(images, tmp_path, epochs=1, external=[str(elsewhere)])
    result, page = baselines.run(chosen)
    row = next(row for row in result.rows if row.name == "simple_cnn on elsewhere")
    table = open_images(tmp_path / "images" / "elsewhere-32")
    assert row.images == len(table.rows) - KNOWN and 0 <= row.metrics["macro_f1"].value <= 1
    assert any("4 left out" in warning for warning in row.warnings)
    assert "simple_cnn on elsewhere" in Path(page).read_text()
    assert "simple_cnn on elsewhere" in json.loads((tmp_path / "job" / "metrics.json").read_text())
    (kept,) = (tmp_path / "job" / external.FOLDER).glob("*.parquet")
    assert len(predictions.read(str(kept))) == row.images
    before = kept.stat().st_mtime_ns
    assert baselines.run(chosen)[0] == result and kept.stat().st_mtime_ns == before
