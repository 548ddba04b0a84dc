"""A run's folder: whose probabilities its rows have, what it is bound to, and what its calibration knows."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ham_ray.cluster import plan
from ham_ray.data.images import Images
from ham_ray.errors import UserError
from ham_ray.evaluation import predictions
from ham_ray.models.weights import RANDOM, Weights
from ham_ray.recipe import Recipe, baseline
from ham_ray.report.summary import Run
from ham_ray.training import input_pipeline, workers
from ham_ray.workflows.steps import trainings
from ham_ray.workflows.steps.context import TrainingContext

pytestmark = pytest.mark.unit
CODES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
SCRATCH = baseline("simple_cnn")
PRETRAINED = baseline("resnet50_frozen").changed(augmentation="strong").refit()  # needs no activations, no calibration


def own(image_ids: pd.Series) -> np.ndarray:
    """Probabilities that are each image's own."""
    return np.array(
        [np.random.default_rng(zlib.crc32(image_id.encode())).dirichlet(np.ones(7)) for image_id in image_ids]
    )


def train(
    images: Images, folder: Path, recipe: Recipe = SCRATCH, weights: Weights = RANDOM, trained: bool = True
) -> Run:
    """`trainings.train` of one recipe into `folder/run`, where in place of Ray's workers each image has its `own`."""

    def outcome(recipe: Recipe, images: Images, splits: input_pipeline.Splits, *rest, **named) -> workers.Outcome:
        assert trained, "a finished run was trained again"
        (folder / "run" / "model.keras").write_bytes(b"a model")
        found = {name: own(rows["image_id"]) for name, rows in splits.rows.items() if name != "training"}
        return workers.Outcome(None, found, pd.DataFrame({"epoch": [1]}), {"feature_spread": 1.0, "seconds": 60.0})

    def undecoded(images: Images, recipe: Recipe, *rest, ahead: bool) -> input_pipeline.Splits:
        return input_pipeline.Splits(input_pipeline.split_rows(images, recipe), {}, {}, ())

    context = TrainingContext(
        images, {"resnet50": weights}, plan(1, [2.0]), str(folder), 1e9, str(folder / "activations"), 0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "train", outcome)
        patch.setattr(input_pipeline, "split", undecoded)
        return trainings.train({"run": recipe}, context)["run"]


@pytest.fixture(scope="module")
def run(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("out")
    train(images, folder)
    return folder / "run"


def test_each_image_has_its_own_probabilities_label_and_split(run: Path, images: Images):
    written = predictions.read(str(run / "predictions.parquet"))
    np.testing.assert_allclose(written[[f"p_{dx}" for dx in CODES]], own(written["image_id"]), atol=1e-6)
    facts = images.rows.set_index("image_id").loc[written["image_id"]]
    assert [CODES[label] for label in written["y_true"]] == facts["dx"].tolist()
    assert written["split"].tolist() == [{0: "test", 1: "validation"}[fold] for fold in facts["fold"]]
    assert len(written) == images.rows["fold"].isin([0, 1]).sum()


def test_the_calibration_knows_the_class_shares_of_the_training_images(run: Path, images: Images):
    prior = json.loads((run / "calibration.json").read_text())["prior"]
    shares = {
        name: images.rows.loc[images.rows["fold"].isin(folds), "dx"].value_counts(normalize=True)[CODES].to_numpy()
        for name, folds in {"training": [2, 3, 4], "validation": [1], "all but test": [1, 2, 3, 4]}.items()
    }
    np.testing.assert_allclose(prior, shares["training"], rtol=1e-9)
    assert not any(np.allclose(prior, shares[other], rtol=1e-3) for other in ("validation", "all but test"))


def test_the_split_beside_the_model_is_that_of_the_folds(run: Path, images: Images):
    written = pd.read_parquet(run / "split.parquet").set_index("image_id")["split"]
    folds = images.rows.set_index("image_id")["fold"]
    expected = folds.map({0: "test", 1: "validation", 2: "training", 3: "training", 4: "training"})
    assert written.to_dict() == expected.to_dict()


def test_a_run_from_other_weights_is_another_run(images: Images, tmp_path: Path):
    first, other = Weights("first.h5", b"1"), Weights("other.h5", b"2")
    train(images, tmp_path, PRETRAINED, first)
    train(images, tmp_path, PRETRAINED, first, trained=False)
    with pytest.raises(UserError, match=r"is another run: weights\.sha256 was '6b86b273.*', is 'd4735e3a.*'"):
        train(images, tmp_path, PRETRAINED, other)
    with pytest.raises(UserError, match=r"is another run: weights\.sha256 was '6b86b273.*', is None"):
        train(images, tmp_path, PRETRAINED, RANDOM)


def test_a_run_from_scratch_does_not_depend_on_weights(images: Images, tmp_path: Path):
    train(images, tmp_path, SCRATCH.refit(), Weights("first.h5", b"1"))
    train(images, tmp_path, SCRATCH.refit(), Weights("other.h5", b"2"), trained=False)
