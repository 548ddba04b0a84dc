"""Trivial baselines on a small IMAGES table whose classes differ in colour, and the original study's figures."""

import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ham10000 import CLASSES, CODES, LABELS
from PIL import Image

from ham_ray.data import images as im
from ham_ray.data.datasets.ham10000 import DATASET
from ham_ray.data.pictures import thumbnail
from ham_ray.errors import UserError
from ham_ray.evaluation import metrics
from ham_ray.evaluation.predictions import arrays, of_split, validate
from ham_ray.models import trivial_baselines
from ham_ray.models.trivial_baselines import fit_logistic as fit

pytestmark = pytest.mark.unit

COLOURS = {"nv": (200, 120, 90), "mel": (60, 40, 40), "vasc": (200, 30, 60)}
COUNTS = {"nv": 40, "mel": 15, "vasc": 10}


def encoded(colour, rng):
    """A 24×24 PNG of one colour with noise."""
    pixels = np.clip(np.array(colour) + rng.normal(0, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    """65 images of three classes in two files, folds by turns, as ingest writes them."""
    rng = np.random.default_rng(0)
    classes = np.repeat(list(COUNTS), list(COUNTS.values()))
    records = [
        {
            "image_id": f"i{place:03}",
            "lesion_id": f"l{place:03}",
            "group_id": f"l{place:03}",
            "dx": dx,
            "label": LABELS[dx],
            "partition": "training",
            "fold": place % 5,
            "width": 24,
            "height": 24,
            "pixel_hash": "",
            "image": encoded(COLOURS[dx], rng),
        }
        for place, dx in enumerate(classes)
    ]
    for part, chunk in enumerate((records[:30], records[30:])):
        pq.write_table(pa.Table.from_pylist(chunk, im.SCHEMA), tmp_path / f"images-{part:05}.parquet")
    card = {"schema_version": 1, "size": 24, "fingerprint": "f", "classes": dict.fromkeys(CODES)}
    (tmp_path / "dataset.json").write_text(json.dumps(card))
    return im.open_images(str(tmp_path))


@pytest.fixture
def splits(images):
    return {"training": images.fold(2, 3, 4), "validation": images.fold(1), "test": images.fold(0)}


def test_both_floors_predict_validation_and_test(images, splits):
    found = trivial_baselines.trivial_baselines(images, splits)
    assert list(found) == ["always_nv", "thumbnail_logistic"]
    for frame in found.values():
        validate(frame, [*splits["validation"]["image_id"], *splits["test"]["image_id"]])
        assert of_split(frame, "test")["image_id"].tolist() == splits["test"]["image_id"].tolist()


def test_always_the_most_frequent_class_has_the_shares_of_training(images, splits):
    frame = trivial_baselines.trivial_baselines(images, splits)["always_nv"]
    assert set(metrics.predicted(arrays(frame)[1])) == {LABELS["nv"]}
    share = (splits["training"]["dx"] == "mel").mean()
    assert frame["p_mel"].to_numpy() == pytest.approx(share)


def test_thumbnails_tell_colours_apart(images, splits):
    frame = of_split(trivial_baselines.trivial_baselines(images, splits)["thumbnail_logistic"], "test")
    assert metrics.balanced_accuracy(*arrays(frame)) > 0.9
    assert frame["p_df"].eq(0).all()  # never seen in training


def test_test_labels_are_not_used(images, splits):
    """Other labels on the evaluated rows change `y_true` and no probability."""
    other = {**splits, "test": splits["test"].assign(label=LABELS["bcc"])}
    before, after = (
        trivial_baselines.trivial_baselines(images, given)["thumbnail_logistic"] for given in (splits, other)
    )
    np.testing.assert_array_equal(arrays(before)[1], arrays(after)[1])


def test_thumbnail_is_12_wide_9_high_and_antialiased():
    pixels = np.zeros((90, 120, 3), np.uint8)
    pixels[:, :60] = 255
    pixels[::2] = 0  # every other line black: plain sampling would give 0 or 255
    found = np.frombuffer(thumbnail(Image.fromarray(pixels)), np.uint8).reshape(9, 12, 3)
    assert found[4, 2] == pytest.approx([127.5] * 3, abs=8)
    assert found[4, 9].tolist() == [0, 0, 0]


def test_thumbnails_are_in_the_order_of_their_rows(images):
    rows = images.rows[::-1]
    found = trivial_baselines.thumbnails(images, rows)
    means = found.mean(axis=1)
    assert means[rows["dx"] == "mel"].max() < means[rows["dx"] == "nv"].min()
    np.testing.assert_array_equal(trivial_baselines.thumbnails(images, rows[3:5]), found[3:5])


def test_stored_thumbnails_are_those_that_would_be_made(images):
    """A table of version 2 has them; without them they are made of the images."""
    made = trivial_baselines.thumbnails(images, images.rows)
    filesystem, files = im.table_files(images.uri)
    start = 0
    for name in files:
        table = pq.read_table(name, filesystem=filesystem)
        column = pa.array([row.tobytes() for row in made[start : start + len(table)]], pa.binary())
        start += len(table)
        index = table.schema.get_field_index("thumbnail")
        pq.write_table(table.set_column(index, "thumbnail", column), name, row_group_size=7)
    newer = replace(images, card={**images.card, "schema_version": 2})
    np.testing.assert_array_equal(trivial_baselines.thumbnails(newer, images.rows[::-1]), made[::-1])


def test_very_many_images_are_drawn_from(images, splits, monkeypatch):
    monkeypatch.setattr(trivial_baselines, "MOST_FITTED", 30)
    fitted = []
    monkeypatch.setattr(trivial_baselines, "fit_logistic", lambda x, *rest: fitted.append(len(x)) or fit(x, *rest))
    found = trivial_baselines.trivial_baselines(images, splits)["thumbnail_logistic"]
    assert fitted == [30] and len(found) == len(splits["validation"]) + len(splits["test"])


def test_one_class_in_training_is_refused(images, splits):
    only = splits["training"][splits["training"]["dx"] == "nv"]
    with pytest.raises(UserError, match="all nv"):
        trivial_baselines.trivial_baselines(images, {**splits, "training": only})


def test_an_empty_validation_split_is_left_out(images, splits):
    found = trivial_baselines.trivial_baselines(images, {**splits, "validation": splits["validation"].iloc[:0]})
    assert {split for frame in found.values() for split in frame["split"]} == {"test"}


def test_class_shares():
    assert trivial_baselines.class_shares(np.array([5, 5, 4]), 7).tolist() == pytest.approx(
        [0, 0, 0, 0, 1 / 3, 2 / 3, 0]
    )


def test_original_figures_are_those_of_the_study():
    given = [(each.accuracy, each.macro_f1, each.weighted_f1) for each in DATASET.published]
    assert given == [(0.48, 0.30, 0.54), (0.67, 0.12, 0.54), (0.66, 0.29, 0.66)]
    assert "not comparable" in DATASET.published_split


def test_every_class_has_a_column():
    features = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 2)))
    model = trivial_baselines.fit_logistic(features.to_numpy(), np.array([1, 1, 6, 6]), CLASSES)
    p = trivial_baselines.probabilities(model, features.to_numpy(), 7)
    assert p.shape == (4, len(CODES))
    assert p[:, [1, 6]].sum(axis=1) == pytest.approx(1)
