"""Which images are in which split, and batches that are made ahead of their use."""

from __future__ import annotations

import hashlib
import json
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ham_ray.data import table as table_module
from ham_ray.data.images import Images, open_images, read_pixels
from ham_ray.data.ingest import ingest
from ham_ray.data.sample import write_sample
from ham_ray.data.stored import StoredRows
from ham_ray.recipe import Recipe, baseline
from ham_ray.training import activations, decoding, input_pipeline
from ham_ray.training import sampler as sampler_module
from ham_ray.training.activations import Cached
from ham_ray.training.augment import DRAWS, augment, draw, view
from ham_ray.training.decoding import Decoder

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


CACHED = baseline("resnet50_frozen").changed(batch_size=64, augmentation="light", seed=5)
LABELS = np.arange(300, dtype=np.int32)  # a label a row, so that a batch says which rows it has


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Cached:
    """A table of activations of 300 images in eight views, each the number of its row and that of its view."""
    folder = tmp_path_factory.mktemp("table")
    values = np.stack(np.broadcast_arrays(LABELS[:, None], np.arange(8)), axis=-1).astype(np.float16)
    blocks = {f"block-{number:05d}.npy": values[number * 128 : (number + 1) * 128] for number in range(3)}
    for name, block in blocks.items():
        np.save(folder / name, block.view(np.uint16))
    about = {"rows": 300, "views": 8, "dtype": "float32", "stored": "float16", "checksums": dict.fromkeys(blocks, 0)}
    (folder / "table.json").write_text(json.dumps(about))
    return Cached(str(folder), np.arange(300, dtype=np.int32))


def made_by_augmentation(recipe: Recipe, index: int) -> list[int]:
    """The view that the augmentation of that step makes of each image of the batch."""
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    uniform = draw(recipe.seed, index, recipe.data.batch_size, DRAWS, stream=0)
    pictures = augment(
        tf.repeat(tf.constant(image), recipe.data.batch_size, axis=0), uniform, recipe.augmentation.name
    ).numpy()
    return [next(i for i in range(8) if np.array_equal(view(image, i)[0], picture)) for picture in pictures]


def test_cached_batches_are_the_views_that_the_augmentation_of_their_step_makes(table: Cached):
    for step, (inputs, labels) in enumerate(
        input_pipeline.cached_batches(table, LABELS, CACHED, input_pipeline.make_sampler(CACHED, 300))(1)
    ):
        np.testing.assert_array_equal(inputs[:, 0], labels)
        assert inputs[:, 1].astype(int).tolist() == made_by_augmentation(CACHED, 4 + step)
    assert step == 3


def test_cached_batches_of_the_second_worker_and_without_augmentation(table: Cached):
    plain = CACHED.changed(augmentation="off")
    for inputs, labels in input_pipeline.cached_batches(
        table, LABELS, plain, input_pipeline.make_sampler(plain, 300, 1, 2)
    )(0):
        np.testing.assert_array_equal(inputs, np.stack([labels, np.zeros(32)], axis=1))
        assert (labels >= 150).all()
    held_out = input_pipeline.cached_shard(table, LABELS, 1, 2)
    np.testing.assert_array_equal(held_out.inputs[5:130][:, 0], np.arange(155, 280))
    np.testing.assert_array_equal(held_out.labels, LABELS[150:])


def test_what_is_read_of_a_table_does_not_stay_mapped(table: Cached, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(activations, "MAPPED", 64)
    opened = activations.Activations(table)

    for _ in range(3):
        np.testing.assert_array_equal(opened.take(np.arange(300), np.zeros(300, int))[:, 0], LABELS)
    assert kilobytes_mapped(table.path) == 0
    monkeypatch.setattr(activations, "MAPPED", 1 << 20)
    opened.take(np.arange(300), np.zeros(300, int))
    assert kilobytes_mapped(table.path) > 0


def kilobytes_mapped(folder: str) -> int:
    """Pages in memory of the files of a folder, as this process maps them."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if folder in line]
    return sum(int(next(line for line in lines[start:] if line.startswith("Rss:")).split()[1]) for start in starts)


RECIPE = baseline("simple_cnn").changed(batch_size=8, seed=3)


class InThisProcess(Decoder):
    """Without Ray Data, as where no CPU comes free for its tasks."""

    def __init__(self) -> None:
        super().__init__(alone=True)


def batches_of(images: Images, workers: int, kept: bool, epoch: int = 1, first: int = 0) -> list[tuple]:
    """The global batches of an epoch from a step on, joined over the workers: pixels and labels."""
    stored = images.stored(input_pipeline.split_rows(images, RECIPE)["training"])
    shares = []
    for rank in range(workers):
        sampler = replace(input_pipeline.make_sampler(RECIPE, len(stored), rank, workers), window=64)
        rows, decoder = input_pipeline.shard_rows("training", stored, sampler), InThisProcess()
        inputs = decoder.whole(rows, 1.0, list) if kept else input_pipeline.StreamedImages(rows, decoder)
        make = input_pipeline.image_batches(input_pipeline.Shard(inputs, rows.labels), sampler)
        shares.append(list(make(epoch, first)))
    return [tuple(np.concatenate(parts) for parts in zip(*batch, strict=True)) for batch in zip(*shares, strict=True)]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "BLOCK", 3)  # so that the sample's strata of 32 rows have windows
    monkeypatch.setattr(decoding, "PIECE", 7)


@pytest.mark.parametrize(("workers", "kept"), [(1, False), (2, True), (2, False), (4, True), (4, False)])
def test_batches_are_the_same_in_memory_and_streamed_on_any_number_of_workers(
    images: Images, small_blocks: None, workers: int, kept: bool
):
    for expected, batch in zip(batches_of(images, 1, True), batches_of(images, workers, kept), strict=True):
        for one, other in zip(expected, batch, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("workers", "kept"), [(1, True), (1, False), (2, False)])
def test_batches_go_on_in_the_middle_of_an_epoch(images: Images, small_blocks: None, workers: int, kept: bool):
    whole, rest = batches_of(images, 1, True), batches_of(images, workers, kept, first=11)
    assert len(rest) == len(whole) - 11
    for expected, batch in zip(whole[11:], rest, strict=True):
        np.testing.assert_array_equal(expected[0], batch[0])


def test_streamed_images_are_those_of_their_rows(images: Images, small_blocks: None):
    rows = images.stored(images.fold(1))
    streamed, whole = input_pipeline.StreamedImages(rows, InThisProcess()), read_pixels(images, images.fold(1))
    np.testing.assert_array_equal(streamed[:20], whole[:20])  # what the first look at the features takes
    for start in range(0, len(rows), 16):
        np.testing.assert_array_equal(streamed[start : start + 16], whole[start : start + 16])
    np.testing.assert_array_equal(streamed[5:9], whole[5:9])


def test_stored_rows_are_read_in_any_order_and_hold_their_own_files_alone(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table_module, "_images_a_file", lambda size: 100)
    many = open_images(ingest(write_sample(tmp_path / "s.zip", size=(80, 60)), tmp_path / "i", size=32).uri)
    rows = many.rows.sample(frac=1, random_state=0)
    pixels = many.stored(rows).pixels()
    for row in range(0, len(rows), 37):
        assert hashlib.sha256(pixels[row].tobytes()).hexdigest() == rows["pixel_hash"].iloc[row]
    few = many.stored(many.rows)[250:260]
    assert [Path(file).name for file in few.files] == ["images-00002.parquet"]
    assert len(pickle.dumps(few)) < 1500 < len(pickle.dumps(many.stored(many.rows)))
    with pytest.raises(AssertionError, match="lost the index"):
        many.stored(rows.reset_index(drop=True))


def test_what_fits_is_kept_and_the_rest_is_streamed(capsys: pytest.CaptureFixture):
    needs = {"training": 600.0, "validation": 300.0}
    assert input_pipeline.keep(needs, 900) == ("training", "validation")
    assert input_pipeline.keep(needs, 899) == ("training",)
    assert input_pipeline.keep(needs, 599) == ("validation",)
    assert "training 0 MiB, streamed; validation 0 MiB, kept in memory" in capsys.readouterr().out.splitlines()[-1]


def stuck():
    """A stream some of whose blocks are gone and cannot be made again."""
    yield {"row": np.array([3, 1]), "pixels": np.full((2, 32, 32, 3), 9, np.uint8)}
    threading.Event().wait()


@pytest.fixture
def no_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "_LOOK", 0.01)
    monkeypatch.setattr(decoding, "STALLED", 0.05)
    monkeypatch.setattr(decoding, "task_cpus", lambda: 1.0)
    free = iter([0.0, 0.5, 1.0])  # a CPU becomes free: waiting may have an end
    monkeypatch.setattr(decoding, "roomiest_cpus", lambda: next(free, 0.0))
    yield
    assert next(free, None) is None


def test_a_shard_whose_blocks_are_gone_is_decoded_by_the_worker_itself(images: Images, no_cpu: None):
    rows, decoder = images.stored(images.fold(2)), Decoder()
    pixels = decoder.whole(rows, 1.0, stuck)
    assert (pixels[[1, 3]] == 9).all()  # what came before
    rest = [row for row in range(len(rows)) if row not in (1, 3)]
    np.testing.assert_array_equal(pixels[rest], read_pixels(images, images.fold(2))[rest])
    assert decoder.alone
    np.testing.assert_array_equal(
        decoder.whole(rows, 1.0, None), read_pixels(images, images.fold(2))
    )  # not asked again


def test_a_stream_that_is_stuck_goes_on_where_it_stood(images: Images, no_cpu: None, monkeypatch: pytest.MonkeyPatch):
    rows, whole = images.stored(images.fold(2)), read_pixels(images, images.fold(2))

    def streamed(rows: StoredRows, window: int, cpus: float):
        yield whole[:5]
        threading.Event().wait()

    monkeypatch.setattr(decoding, "_streamed", streamed)
    np.testing.assert_array_equal(np.concatenate(list(Decoder().stream(rows, 64))), whole)


def test_what_goes_wrong_while_decoding_is_raised(images: Images):
    def broken():
        raise OSError(5, "input/output error", "images-00000.parquet")

    with pytest.raises(OSError, match=r"images-00000\.parquet"):
        Decoder().whole(images.stored(images.fold(1)), 1.0, broken)


def test_a_stream_can_be_left_and_its_thread_ends(images: Images, monkeypatch: pytest.MonkeyPatch):
    ended = threading.Event()

    def endless(rows: StoredRows, window: int, cpus: float):
        try:
            while True:
                yield np.zeros((1, 32, 32, 3), np.uint8)
        finally:
            ended.set()

    monkeypatch.setattr(decoding, "_streamed", endless)
    monkeypatch.setattr(decoding, "task_cpus", lambda: 1.0)
    stream = Decoder().stream(images.stored(images.fold(1)), 64)
    next(stream)
    stream.close()
    assert ended.wait(60)


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
