"""Every data set from the archive of its synthetic sample through all jobs: what a new one meets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from searching import small_search
from sklearn.metrics import balanced_accuracy_score

from ham_ray.data import datasets
from ham_ray.data.dataset import Dataset
from ham_ray.data.images import LEAKAGE, Images, open_images
from ham_ray.data.ingest import ingest
from ham_ray.data.sample import write_sample
from ham_ray.evaluation import predictions
from ham_ray.search.study import Study
from ham_ray.workflows import baseline, evaluate, predict
from ham_ray.workflows.steps import baselines, evaluating, predicting, tuning

pytestmark = pytest.mark.ray
SPACE = """\
family: simple_cnn
objective: balanced_accuracy
sampler: {name: tpe, seed: 3}
scheduler: {name: none}
recipe: {epochs: 1, batch_size: 16, patience: 0, precision: float32}
parameters:
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
"""


@pytest.fixture(scope="module", params=datasets.DATASETS)
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return datasets.DATASETS[request.param]


@pytest.fixture(scope="module")
def folder(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(dataset.name)


@pytest.fixture(scope="module")
def archive(dataset: Dataset, folder: Path) -> Path:
    return write_sample(folder / "sample.zip", lesions=120, size=(48, 36), dataset=dataset)


@pytest.fixture(scope="module")
def own(archive: Path, folder: Path) -> Images:
    """IMAGES of the sample."""
    return open_images(ingest(archive, folder / "images", size=32).uri)


@pytest.fixture(scope="module")
def run(cluster: str, own: Images, folder: Path) -> Path:
    """The folder of a baseline."""
    options = baseline.Options(
        data=own.uri,
        families="simple_cnn",
        epochs=1,
        precision="float32",
        changes=["batch_size=16"],
        name="baseline",
        out=str(folder),
    )
    baselines.run(options)
    return folder / "baseline"


def test_the_table_has_the_classes_of_the_archive(own: Images, dataset: Dataset):
    counts = own.rows["dx"].value_counts()
    assert {*counts.index} == {*dataset.sample.looks} == {*own.classes.codes} and counts.min() >= 10
    assert own.rows["label"].tolist() == [own.classes.codes.index(dx) for dx in own.rows["dx"]]
    assert own.card["dataset"] == dataset.name and own.dataset is dataset
    assert dataset.classes is None or own.classes == dataset.classes


def test_the_model_has_them_too_and_so_have_its_predictions(run: Path, own: Images):
    table = predictions.read(str(run / "simple_cnn" / "predictions.parquet"))
    assert predictions.classes_of(table) == own.classes
    truth = own.rows.set_index("image_id").loc[table["image_id"], "dx"]
    assert [own.classes.codes[label] for label in table["y_true"]] == truth.tolist()
    # what the saved model says of the images of the archive is what the run says
    predicting.run(
        predict.Options(
            models=[str(run / "simple_cnn")],
            images=own.uri,
            out=str(run / "again.parquet"),
            precision="float32",
            raw=True,
        )
    )
    again = predictions.read(str(run / "again.parquet")).set_index("image_id").loc[table["image_id"]]
    columns = own.classes.probabilities
    pd.testing.assert_frame_equal(
        again[columns].reset_index(drop=True), table[columns].reset_index(drop=True), atol=1e-5, rtol=0
    )
    assert again["y_true"].tolist() == table["y_true"].tolist()


def test_pages_speak_of_these_classes_and_of_leakage_where_lesions_are_not_known(run: Path, own: Images):
    page = (run / "report.html").read_text()
    card = (run / "model_card.md").read_text()
    for dx in own.classes.codes:
        assert f"<b>{dx}</b>" in page and f"- {dx}" in card
    assert (LEAKAGE in page) == (LEAKAGE in card) == own.rows["lesion_id"].isna().any()
    assert ("melanoma" in page) == (own.classes.focus is not None)
    results = json.loads((run / "metrics.json").read_text())["simple_cnn"]
    assert [*results["per_class"]] == [*own.classes.codes]
    assert f"{own.classes.focus_name}_auc" in results
    test = own.rows[own.rows["fold"] == 0]
    assert results["n"] == len(test)


def test_evaluate_says_the_same_with_the_archive_as_truth(run: Path, archive: Path, own: Images, tmp_path: Path):
    table = predictions.read(str(run / "simple_cnn" / "predictions.parquet"))
    table[table["split"] == "test"].assign(y_true=pd.NA).to_csv(tmp_path / "p.csv", index=False)
    evaluating.run(
        evaluate.Options(predictions=[str(tmp_path / "p.csv")], truth=str(archive), out=str(tmp_path / "report"))
    )
    results = json.loads((tmp_path / "report" / "metrics.json").read_text())["p"]
    test = table[table["split"] == "test"]
    called = test[own.classes.probabilities].to_numpy().argmax(axis=1)
    assert results["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(test["y_true"], called))
    page = (tmp_path / "report" / "report.html").read_text()
    assert (LEAKAGE in page) == own.rows["lesion_id"].isna().any()


def two_trials(study: Study, *arguments: Any) -> None:
    """What Ray Tune would do, without training."""
    for score in (0.3, 0.4):
        study.report(number := study.ask().number, 1, score)
        study.note(number, seconds=1.0)
        study.complete(number)


def test_a_search(cluster: str, own: Images, dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Ray trains trials and the best of them for the data set of whatever classes, which the other tests know least."""
    trained = dataset is datasets.ANY
    if not trained:
        monkeypatch.setattr(tuning.tuner, "run", two_trials)
    (folder / "space.yaml").write_text(SPACE)
    result = tuning.run(
        small_search(folder, folder / "space.yaml", data=own.uri, trials=2, finalists=int(trained), name="search")
    )
    assert (result.trials["state"] == "complete").sum() == 2 and result.trials["balanced_accuracy"].notna().all()
    assert (result.summary is not None and bool(result.summary.rows[0].metrics)) == trained
    page = (folder / "search" / "report.html").read_text()
    assert (LEAKAGE in page) == own.rows["lesion_id"].isna().any()
