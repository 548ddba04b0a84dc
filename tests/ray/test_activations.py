"""The cache of a frozen prefix: the same training as without it, and never a wrong or torn table."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from here import train_here
from PIL import Image, ImageOps

from ham_ray.data.images import Images, open_images, read_pixels
from ham_ray.data.ingest import ingest
from ham_ray.data.sample import write_sample
from ham_ray.models import registry
from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM, Weights
from ham_ray.recipe import Recipe, baseline
from ham_ray.training import activations, input_pipeline
from ham_ray.training.activations import Activations, Cached
from ham_ray.training.augment import view

pytestmark = pytest.mark.ray
FROZEN = baseline("resnet50_frozen").changed(epochs=2, batch_size=32, hidden_units=0)
FINETUNED = baseline("resnet50_finetuned").changed(
    epochs=2, head_epochs=1, batch_size=32, unfreeze_depth=1, augmentation="light", learning_rate=1e-5
)


def tables(images: Images, recipe: Recipe, folder: Path, budget: float = 2**30) -> dict[str, Cached] | None:
    return activations.prepare(images, input_pipeline.split_rows(images, recipe), recipe, RANDOM, str(folder), budget)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("activations")


def copied(found: dict[str, Cached], folder: Path) -> Path:
    """Both tables, copied to a folder; the path of the training table there."""
    copies = {
        name: Path(shutil.copytree(one.path, folder / Path(one.path).name, dirs_exist_ok=True))
        for name, one in found.items()
    }
    return copies["training"]


def paths(found: dict[str, Cached] | None, folder: Path | None = None) -> dict[str, Path]:
    """Where the tables are, or would be in another folder."""
    assert found is not None
    return {name: (folder or Path(one.path).parent) / Path(one.path).name for name, one in found.items()}


@pytest.fixture(scope="module")
def frozen(cluster: str, images: Images, folder: Path) -> dict[str, Cached]:
    found = tables(images, FROZEN, folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def finetuned(cluster: str, images: Images, folder: Path) -> dict[str, Cached]:
    found = tables(images, FINETUNED, folder)
    assert found is not None
    return found


def test_a_table_holds_what_the_prefix_gives_for_each_view(finetuned: dict[str, Cached], images: Images):
    rows = images.fold(*FINETUNED.training_folds)
    pixels = read_pixels(images, rows)[100:140]
    prefix = build(FINETUNED, images.size, RANDOM, 7).prefix
    table = Activations(finetuned["training"], slice(90, len(rows)))
    assert len(table) == len(rows) - 90
    np.testing.assert_allclose(table[10:50], prefix(pixels).numpy(), rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(table.take(np.array([49, 10]), np.array([0, 0])), table[10:50][[39, 0]])
    fifth = table.take(np.arange(10, 50), np.full(40, 5))
    np.testing.assert_allclose(fifth, prefix(view(pixels, 5)).numpy(), rtol=2e-3, atol=1e-3)
    assert table[:1].dtype == np.float32


@pytest.mark.parametrize("recipe", [FROZEN, FINETUNED], ids=["frozen", "depth 1"])
def test_training_from_the_table_is_training_from_images(request, images: Images, tmp_path: Path, recipe: Recipe):
    found = request.getfixturevalue("finetuned" if recipe is FINETUNED else "frozen")
    plain = train_here(recipe, images, tmp_path / "plain")
    cached = train_here(recipe, images, tmp_path / "cached", found)
    np.testing.assert_allclose(cached.history["train_loss"], plain.history["train_loss"], rtol=5e-3)
    np.testing.assert_allclose(cached.history["validation_loss"], plain.history["validation_loss"], rtol=5e-3)
    np.testing.assert_allclose(cached.probabilities["test"], plain.probabilities["test"], atol=1e-2)
    pixels = read_pixels(images, images.fold(recipe.data.validation_fold))
    spread = plain.network.feature_spread(plain.network.prefix(pixels))
    table = Activations(found["validation"], slice(0, len(pixels)))
    assert abs(cached.network.feature_spread(table[:]) - spread) < 1e-2


def test_two_workers_read_the_batches_of_one(frozen: dict[str, Cached], images: Images):
    labels = images.fold(*FROZEN.training_folds)["label"].to_numpy(np.int32)
    whole, *shares = (
        list(input_pipeline.cached_batches(frozen["training"], labels, FROZEN, sampler)(epoch=1))
        for sampler in (input_pipeline.make_sampler(FROZEN, len(labels), *place) for place in ((0, 1), (0, 2), (1, 2)))
    )
    assert len(whole) == len(labels) // FROZEN.data.batch_size
    for batch, first, second in zip(whole, *shares, strict=True):
        for together, here, there in zip(batch, first, second, strict=True):
            np.testing.assert_array_equal(together, np.concatenate([here, there]))


def test_two_workers_validate_on_the_rows_of_one(frozen: dict[str, Cached], images: Images):
    labels = images.fold(FROZEN.data.validation_fold)["label"].to_numpy(np.int32)
    whole, *halves = (
        input_pipeline.cached_shard(frozen["validation"], labels, *place) for place in ((0, 1), (0, 2), (1, 2))
    )
    np.testing.assert_array_equal(whole.inputs[:], np.concatenate([half.inputs[:] for half in halves]))
    np.testing.assert_array_equal(whole.labels, np.concatenate([half.labels for half in halves]))


def test_a_sound_table_is_taken_again_and_a_damaged_block_computed_anew(
    frozen: dict[str, Cached], images: Images, tmp_path: Path, capsys
):
    path = copied(frozen, tmp_path)
    blocks = sorted(path.glob("block-*.npy"))
    before = {block: (block.read_bytes(), block.stat().st_mtime_ns) for block in blocks}
    there = paths(frozen, tmp_path)
    assert len(blocks) > 2 and paths(tables(images, FROZEN, tmp_path)) == there
    assert "there already" in capsys.readouterr().out
    assert all(block.stat().st_mtime_ns == before[block][1] for block in blocks)
    blocks[0].write_bytes(before[blocks[0]][0][:500])
    with blocks[1].open("r+b") as file:  # one bit flipped, far behind the header
        file.seek(-1000, 2)
        byte = file.read(1)
        file.seek(-1000, 2)
        file.write(bytes([byte[0] ^ 1]))
    assert paths(tables(images, FROZEN, tmp_path)) == there
    told = capsys.readouterr().out
    assert all(f"{block} is damaged or gone" in told for block in blocks[:2])
    assert all(block.read_bytes() == before[block][0] for block in blocks)
    assert blocks[-1].stat().st_mtime_ns == before[blocks[-1]][1]


def test_a_killed_build_goes_on(frozen: dict[str, Cached], images: Images, tmp_path: Path):
    path = copied(frozen, tmp_path)
    (path / "table.json").unlink()
    first, *rest = sorted(path.glob("block-*.npy"))
    kept = first.stat().st_mtime_ns
    rest[0].unlink()
    (path / f".{rest[0].name}.0.part.npy").write_bytes(b"half")
    assert paths(tables(images, FROZEN, tmp_path)) == paths(frozen, tmp_path)
    assert first.stat().st_mtime_ns == kept and rest[0].exists()
    assert len(json.loads((path / "table.json").read_bytes())["checksums"]) == 1 + len(rest)


def test_what_changes_the_content_changes_the_table(images: Images, tmp_path: Path):
    def place(recipe: Recipe, weights: Weights = RANDOM, views: int = 8, shape: tuple[int, ...] = (1, 1, 8)) -> Path:
        rows = images.fold(*recipe.training_folds)
        return activations._table(images, rows, views, recipe, weights, str(tmp_path), shape).path

    others = [FROZEN.changed(seed=1), FROZEN.changed(precision="bfloat16")]
    found = [place(FROZEN), place(FROZEN, views=1), place(FROZEN, Weights("w", b"w")), place(FINETUNED)]
    found += [place(recipe) for recipe in others] + [place(FROZEN, shape=(2, 2, 8))]
    assert len(set(found)) == len(found)
    assert place(FROZEN.changed(learning_rate=0.5, epochs=7, dropout=0.1)) == found[0]
    assert place(FROZEN.changed(validation_fold=2)) == found[0]


def test_other_folds_add_what_they_lack_to_the_same_tables(frozen: dict[str, Cached], images: Images, tmp_path: Path):
    path = copied(frozen, tmp_path)
    before = {block: block.stat().st_mtime_ns for block in path.glob("block-*.npy")}
    recipe = FROZEN.changed(test_fold=1, validation_fold=2)
    found = tables(images, recipe, tmp_path)
    assert found is not None and paths(found) == paths(frozen, tmp_path)
    assert {block: block.stat().st_mtime_ns for block in before} == before
    assert len([*path.glob("block-*.npy")]) == -(-len(images.rows) // activations.BLOCK) > len(before)
    for name, rows in input_pipeline.split_rows(images, recipe).items():
        if name in found:
            expected = build(recipe, images.size, RANDOM, 7).prefix(read_pixels(images, rows)).numpy()
            np.testing.assert_allclose(Activations(found[name])[:], expected, rtol=2e-3, atol=1e-3)


def test_a_table_without_augmentation_serves_training_and_validation(cluster: str, images: Images, tmp_path: Path):
    found = tables(images, FROZEN.changed(augmentation="off"), tmp_path)
    assert found is not None and len({one.path for one in found.values()}) == 1
    rows = images.fold(FROZEN.data.validation_fold)
    expected = build(FROZEN, images.size, RANDOM, 7).prefix(read_pixels(images, rows)).numpy()
    np.testing.assert_allclose(Activations(found["validation"])[:], expected, rtol=2e-3, atol=1e-3)


def test_architectures_share_no_table_nor_do_versions_of_the_code(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With random weights nothing else tells two networks of equal shape apart."""

    def path(family: str) -> Path:
        recipe, rows = FROZEN.changed(family=family), images.fold(1)
        return activations._table(images, rows, 8, recipe, RANDOM, str(tmp_path), (1, 1, 8)).path

    twin = dataclasses.replace(
        registry.architecture(FROZEN.family), name="twin", recipes={"twin": registry.RECIPES[FROZEN.family]}
    )
    registry.register(twin)
    try:
        assert path("twin") != path(FROZEN.family)
    finally:
        registry.unregister("twin")
    before = path(FROZEN.family)
    monkeypatch.setattr(activations, "CODE", activations.CODE + 1)
    assert path(FROZEN.family) != before


def test_other_pixels_under_the_same_names_share_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One archive cropped, squashed, and with one of its pictures mirrored; each as it is planned, and none built."""
    monkeypatch.setattr(activations, "_output", lambda recipe, size: ((1, 1, 8), "float32"))
    archive = write_sample(tmp_path / "synthetic.zip", lesions=35, size=(80, 60))
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(tmp_path / "mirrored.zip", "w") as other:
        members = {name: whole.read(name) for name in whole.namelist()}
        first = min(name for name in members if name.endswith(".jpg"))
        buffer = io.BytesIO()
        ImageOps.mirror(Image.open(io.BytesIO(members[first]))).save(buffer, "JPEG", quality=95)
        for name, content in (members | {first: buffer.getvalue()}).items():
            other.writestr(name, content)

    def planned(source: Path, geometry: str) -> tuple[list[str], set[Path]]:
        images = open_images(ingest(source, tmp_path / f"{source.stem}-{geometry}", size=32, geometry=geometry).uri)
        rows = {"training": images.fold(0, 1, 2, 3, 4)}
        found = activations.planned(images, rows, FROZEN, RANDOM, str(tmp_path / "tables"), 2**30)
        assert found is not None
        return rows["training"]["image_id"].tolist(), set(found.sizes())

    (names, crop), *others = (
        planned(archive, "crop"),
        planned(archive, "squash"),
        planned(tmp_path / "mirrored.zip", "crop"),
    )
    assert all(ids == names and crop.isdisjoint(paths) for ids, paths in others)
    assert others[0][1].isdisjoint(others[1][1]) and planned(archive, "crop") == (names, crop)


@pytest.mark.parametrize(
    ("changes", "budget", "reason"),
    [
        ({"augmentation": "strong"}, 2**30, "'strong' never gives the same image twice"),
        ({}, 1e5, "more than --activations"),
        ({"family": "resnet50_finetuned", "unfreeze_depth": 5}, 2**30, "unfreeze depth 5"),
        ({"family": "simple_cnn"}, 2**30, "simple_cnn has no frozen part"),
    ],
)
def test_the_plain_path_is_taken_with_its_reason(images: Images, tmp_path: Path, capsys, changes, budget, reason):
    assert tables(images, FROZEN.changed(**changes), tmp_path, budget) is None
    assert reason in capsys.readouterr().out


def test_a_full_disk_is_seen_before_the_work(images: Images, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(activations.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert tables(images, FROZEN, tmp_path) is None
    assert "GiB free" in capsys.readouterr().out
