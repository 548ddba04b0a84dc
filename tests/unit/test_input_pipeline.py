"""Which images are in which split, and batches that are made ahead of their use."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ham_ray.data.images import Images, read_pixels
from ham_ray.recipe import Recipe, baseline
from ham_ray.training import input_pipeline
from ham_ray.training.augment import DRAWS, augment, draw, view
from ham_ray.training.sampler import Sampler

pytestmark = pytest.mark.unit


def test_the_splits_are_the_folds_of_the_recipe(images: Images):
    fold_of = images.rows.set_index("image_id")["fold"]

    def folds() -> dict[str, list[int]]:
        rows = input_pipeline.split_rows(images, baseline("simple_cnn").changed(test_fold=3, validation_fold=0))
        assert all(len(frame) == fold_of.isin(frame["fold"]).sum() for frame in rows.values())
        return {name: sorted(set(fold_of[frame["image_id"]])) for name, frame in rows.items()}

    assert folds() == {"training": [1, 2, 4], "validation": [0], "test": [3]}
    refitted = input_pipeline.split_rows(images, baseline("simple_cnn").changed(test_fold=3, validation_fold=0).refit())
    assert {name: sorted(set(frame["fold"])) for name, frame in refitted.items()} == {
        "training": [0, 1, 2, 4],
        "test": [3],
    }


NO_SOURCE: Any = SimpleNamespace(alone=False)  # nothing is decoded a second time
CACHED = baseline("resnet50_frozen").changed(batch_size=64, augmentation="light", seed=5)
LABELS = np.arange(300, dtype=np.int32)  # a label a row, so that a batch says which rows it has


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table of activations of 300 images in eight views, each the number of its row and that of its view."""
    folder = tmp_path_factory.mktemp("table")
    values = np.stack(np.broadcast_arrays(LABELS[:, None], np.arange(8)), axis=-1).astype(np.float16)
    blocks = {f"block-{number:05d}.npy": values[number * 128 : (number + 1) * 128] for number in range(3)}
    for name, block in blocks.items():
        np.save(folder / name, block.view(np.uint16))
    about = {"rows": 300, "views": 8, "dtype": "float32", "stored": "float16", "checksums": dict.fromkeys(blocks, 0)}
    (folder / "table.json").write_text(json.dumps(about))
    return str(folder)


def made_by_augmentation(recipe: Recipe, index: int) -> list[int]:
    """The view that the augmentation of that step makes of each image of the batch."""
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    uniform = draw(recipe.seed, index, recipe.data.batch_size, DRAWS, stream=0)
    pictures = augment(
        tf.repeat(tf.constant(image), recipe.data.batch_size, axis=0), uniform, recipe.augmentation.name
    ).numpy()
    return [next(i for i in range(8) if np.array_equal(view(image, i)[0], picture)) for picture in pictures]


def test_cached_batches_are_the_views_that_the_augmentation_of_their_step_makes(table: str):
    for step, (inputs, labels) in enumerate(
        input_pipeline.cached_batches(table, LABELS, CACHED, input_pipeline.make_sampler(CACHED, 300))(1)
    ):
        np.testing.assert_array_equal(inputs[:, 0], labels)
        assert inputs[:, 1].astype(int).tolist() == made_by_augmentation(CACHED, 4 + step)
    assert step == 3


def test_cached_batches_of_the_second_worker_and_without_augmentation(table: str):
    plain = CACHED.changed(augmentation="off")
    for inputs, labels in input_pipeline.cached_batches(
        table, LABELS, plain, input_pipeline.make_sampler(plain, 300, 1, 2)
    )(0):
        np.testing.assert_array_equal(inputs, np.stack([labels, np.zeros(32)], axis=1))
        assert (labels >= 150).all()
    held_out = input_pipeline.cached_shard(table, LABELS, 1, 2)
    np.testing.assert_array_equal(held_out.inputs[5:130][:, 0], np.arange(155, 280))
    np.testing.assert_array_equal(held_out.labels, LABELS[150:])


class Shard:
    """A worker's dataset as Ray Data gives it, in blocks of any order; what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def iter_batches(self, **asked):
        self.asked.append(asked)
        for rows in ([7, 2, 5], [0], [6, 1, 3, 4]):
            names, pixels = np.array([f"i{row}" for row in rows]), np.array(rows, np.uint8)
            yield {"image_id": names, "pixels": pixels[:, None], "label": np.array(rows, np.int64) * 10}


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch) -> Shard:
    found = Shard()
    monkeypatch.setattr(input_pipeline.ray.train, "get_dataset_shard", lambda name: found)
    return found


def test_a_part_is_in_the_order_of_image_id_with_its_own_labels(shard: Shard):
    part = input_pipeline.collect("validation", Sampler(8, 4, 0), NO_SOURCE)
    np.testing.assert_array_equal(part.inputs[:][:, 0], np.arange(8))
    np.testing.assert_array_equal(part.labels, np.arange(8) * 10)


class Stuck:
    """A worker's dataset some of whose blocks are gone and cannot be decoded again."""

    def iter_batches(self, **asked):
        threading.Event().wait()
        yield


@pytest.mark.parametrize(("name", "rank"), [("training", 1), ("test", 0)])
def test_a_part_whose_blocks_are_gone_is_decoded_by_the_worker_itself(
    images: Images, monkeypatch: pytest.MonkeyPatch, name: str, rank: int
):
    monkeypatch.setattr(input_pipeline.ray.train, "get_dataset_shard", lambda name: Stuck())
    monkeypatch.setattr(input_pipeline, "_LOOK", 0.01)
    monkeypatch.setattr(input_pipeline, "STALLED", 0.05)
    monkeypatch.setattr(input_pipeline, "decoding_cpus", lambda: 1.0)
    free = iter([0.0, 0.5, 1.0])  # a CPU becomes free: waiting may have an end
    monkeypatch.setattr(input_pipeline, "free_cpus", lambda: next(free, 0.0))
    recipe = baseline("simple_cnn").changed(batch_size=8)
    rows = input_pipeline.split_rows(images, recipe)
    sampler = input_pipeline.make_sampler(recipe, len(rows["training"]), rank, workers=2)
    source = input_pipeline.Source(images, rows)
    part = input_pipeline.collect(name, sampler, source)
    own = rows[name].iloc[sampler.bounds if name == "training" else slice(0, len(rows[name]) // 2)]
    assert next(free, None) is None
    np.testing.assert_array_equal(part.labels, own["label"])
    assert len(part.inputs) == len(own)
    for row in (0, len(own) - 1):
        np.testing.assert_array_equal(part.inputs[row], read_pixels(images, own.iloc[[row]])[0])
    monkeypatch.setattr(input_pipeline.ray.train, "get_dataset_shard", None)  # what is gone is not asked for again
    np.testing.assert_array_equal(input_pipeline.collect(name, sampler, source).labels, own["label"])


def test_what_goes_wrong_while_decoding_is_raised(monkeypatch: pytest.MonkeyPatch):
    def broken(**asked):
        raise OSError(5, "input/output error", "images-00000.parquet")

    monkeypatch.setattr(
        input_pipeline.ray.train, "get_dataset_shard", lambda name: SimpleNamespace(iter_batches=broken)
    )
    with pytest.raises(OSError, match=r"images-00000\.parquet"):
        input_pipeline.collect("test", Sampler(8, 4, 0), NO_SOURCE)


def test_streamed_epochs_are_shuffled_each_in_its_own_order_and_as_long_on_every_worker(shard: Shard):
    recipe = baseline("simple_cnn").changed(batch_size=8, seed=3)
    for rank, epoch in ((0, 0), (1, 0), (0, 1)):
        found = list(
            input_pipeline.batches(input_pipeline.make_sampler(recipe, 23, rank, workers=2), False, NO_SOURCE)(epoch)
        )
        assert [labels.tolist() for _, labels in found] == [[70, 20, 50], [0]]  # 23 rows are two steps of eight
    assert len({asked["local_shuffle_seed"] for asked in shard.asked}) == 3
    assert {(asked["batch_size"], asked["drop_last"]) for asked in shard.asked} == {(4, True)}


def test_the_next_batch_is_made_while_one_is_used():
    made = threading.Semaphore(0)

    def batches():
        for number in range(3):
            made.release()
            yield number

    found = input_pipeline._ahead(batches())
    assert next(found) == 0
    assert made.acquire(timeout=60) and made.acquire(timeout=60), "the second was not begun"
    assert list(found) == [1, 2]


def test_an_error_reaches_who_uses_the_batches():
    def batches():
        yield 1
        raise OSError("disk")

    found = input_pipeline._ahead(batches())
    assert next(found) == 1
    with pytest.raises(OSError, match="disk"):
        next(found)


def test_they_can_be_left_early():
    found = input_pipeline._ahead(iter(range(1000)))
    assert next(found) == 0
    found.close()
