"""What a prediction is bound to, and the calls that go with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from ham10000 import CLASSES
from ray import cloudpickle

from ham_ray.data.archives import Member
from ham_ray.data.gallery import FileGallery, Gallery, TableGallery
from ham_ray.data.images import Images
from ham_ray.errors import UserError
from ham_ray.evaluation.calibration import Calibration
from ham_ray.inference import pipeline, saved
from ham_ray.inference.pipeline import InferenceConfig
from ham_ray.inference.saved import Saved
from ham_ray.workflows.steps import predicting

pytestmark = pytest.mark.unit


def identity(*places: Path, geometry: str = "crop") -> dict:
    members = {str(place): 1 / len(places) for place in places}
    options = SimpleNamespace(raw=False, format="parquet")
    gallery = SimpleNamespace(signature="s")
    return predicting._identity(
        options,
        [Saved("m", members, 32, CLASSES, None, None, {})],
        gallery,
        geometry,
        InferenceConfig((members,), (32,)),
    )


def test_each_member_of_an_ensemble_counts(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    (tmp_path / "copy").write_text("b")
    found = identity(tmp_path / "a", tmp_path / "b")
    assert len(found["models"][0]) == 2
    assert found != identity(tmp_path / "a", tmp_path / "c")
    assert found == identity(tmp_path / "copy", tmp_path / "a")  # wherever they lie


def test_other_pixels_of_the_same_files_are_other_predictions(tmp_path: Path):
    (tmp_path / "a").write_text("a")
    assert identity(tmp_path / "a") != identity(tmp_path / "a", geometry="squash")


@pytest.mark.parametrize("content", [b"[]", b"{", b"null", b"[" * 100_000])
def test_a_damaged_manifest_beside_finished_predictions_is_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "a.manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a.manifest.json is damaged \(.*\): delete it and a$"):
        predicting._same(str(tmp_path / "a.manifest.json"), {"images": "s"}, "a")


def test_a_manifest_of_something_else_is_refused_by_name(tmp_path: Path):
    (tmp_path / "a.manifest.json").write_text('{"identity": 3}')
    with pytest.raises(UserError, match="holds predictions with other images"):
        predicting._same(str(tmp_path / "a.manifest.json"), {"images": "s"}, "a")


def test_each_model_is_calibrated_by_itself_before_they_are_averaged():
    """At temperature 1/2 probabilities are squared, at 1/3 cubed; the second model has no calibration."""
    fitted = [Calibration(1 / 2, 0.0, (1 / 7,) * 7), None, Calibration(1 / 3, 0.0, (1 / 7,) * 7)]
    models = [Saved(name, {}, 32, CLASSES, None, one, {}) for name, one in zip("abc", fitted, strict=True)]
    given = np.array([[[0.6, 0.2, 0.2, 0, 0, 0, 0], [0.1, 0.9, 0, 0, 0, 0, 0], [0.5, 0.1, 0.4, 0, 0, 0, 0]]])
    powers = given[0] ** np.array([[2], [1], [3]])
    expected = (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(saved.calibrated(given, models)[0], expected, atol=1e-9)
    np.testing.assert_allclose(saved.calibrated(given, models, raw=True)[0], given[0].mean(axis=0))


def test_an_ensemble_is_the_mean_of_its_members_by_their_shares_over_the_views(monkeypatch: pytest.MonkeyPatch):
    """Of each image, 3 bright pixels in the left corner above: one model calls by the row, the other by the column."""

    def load(uri: str, precision: str):
        axes = {"rows": [2, 3], "columns": [1, 3]}[uri]
        return lambda pixels, training: tf.pad(tf.reduce_sum(tf.cast(pixels, tf.float32), axes) / 6.0, [[0, 0], [0, 5]])

    monkeypatch.setattr(pipeline.saved, "load", load)
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = 2
    stretch = SimpleNamespace(load=lambda: SimpleNamespace(image_ids=["x"], findings=[], pixels=image))

    def predicted(views: int) -> list[float]:
        way = InferenceConfig(({"rows": 0.25, "columns": 0.75},), (2,), views, batch_size=4)
        return pipeline._Predictor(way)(pipeline._Chunk(0, {2: stretch}))["raw"][0].as_py()  # type: ignore[arg-type]

    assert predicted(1) == [1, 0, 0, 0, 0, 0, 0]
    # the second view is mirrored left to right: the columns change places, the rows do not
    assert predicted(2) == [0.25 + 0.75 / 2, 0.75 / 2, 0, 0, 0, 0, 0]


def listed(count: int, folder: Path) -> Gallery:
    """So many files in a folder, none of which is there."""
    ids = [f"ISIC_{number:07d}" for number in range(count)]
    files = [Member(str(folder), f"{image_id}.jpg", f"{image_id}.jpg", 5000) for image_id in ids]
    return FileGallery(pd.DataFrame({"image_id": ids, "sex": "female"}), "s", files, 32, "crop")


def tabled(count: int, folder: Path) -> Gallery:
    """So many rows of a table in files of 50 rows, with no pixels."""
    folder = folder / f"{count:07d}"
    folder.mkdir()
    rows = pd.DataFrame({"image_id": [f"ISIC_{number:07d}" for number in range(count)], "sex": "female", "label": 0})
    for number, start in enumerate(range(0, count, 50)):
        stretch = pa.Table.from_pandas(rows.iloc[start : start + 50])
        pq.write_table(stretch, folder / f"images-{number:05d}.parquet")
    return TableGallery(Images(str(folder), {"size": 32, "same_pixels": rows["image_id"].tolist()}, rows))


@pytest.mark.parametrize("make", [listed, tabled])
def test_what_is_sent_to_an_actor_does_not_grow_with_the_list_of_images(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sent: list[tuple[int, int]] = []

    def mapped(make, chunks, what: str):
        sent.append((len(cloudpickle.dumps(make)), max(len(cloudpickle.dumps(chunk)) for chunk in chunks)))
        return iter(())

    monkeypatch.setattr(pipeline.pool, "mapped", mapped)
    monkeypatch.setattr(pipeline, "CHUNK_IMAGES", 50)
    for count in (100, 10_000):
        gallery = make(count, tmp_path)
        list(pipeline.predicted(gallery, InferenceConfig(({"m": 1.0},), (32,)), range(count // 50)))
    (maker, chunk), (maker_of_more, chunk_of_more) = sent
    assert maker_of_more == maker and abs(chunk_of_more - chunk) < 20  # a greater number takes a byte or two
