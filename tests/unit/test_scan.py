"""Hostile and damaged model files, and what lies beside them: each is one line that names it, soon and unopened."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
from architectures import family, parameters
from ham10000 import CLASSES

from ham_ray.errors import UserError
from ham_ray.inference import saved, scan
from ham_ray.inference.scan import CONFIG, METADATA, WEIGHTS
from ham_ray.models import saving
from ham_ray.models.network import build
from ham_ray.models.saving import save
from ham_ray.models.weights import RANDOM
from ham_ray.recipe import baseline

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a sound file of this project holds."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    build(baseline("simple_cnn"), 32, RANDOM, 7).classifier().save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def refusal(place: str, opened: Callable[[str], Any] = saved.find) -> str:
    """The one line by which a file is refused, without much computing."""
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        opened(place)
    assert time.process_time() - start < 30
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700 and place in text
    return text


def described(members: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    """The members with another description: what `change` returns, or what it left of the one it was given."""
    config = json.loads(members[CONFIG])
    changed = change(config)
    return members | {CONFIG: json.dumps(config if changed is None else changed).encode()}


def weighed(members: dict[str, bytes], change: Callable[[h5py.File], Any]) -> dict[str, bytes]:
    """The members with other weights."""
    buffer = io.BytesIO(members[WEIGHTS])
    with h5py.File(buffer, "r+") as file:
        change(file)
    return members | {WEIGHTS: buffer.getvalue()}


def first_array(file: h5py.File) -> h5py.Dataset:
    names: list[str] = []
    file.visit(names.append)
    return next(file[name] for name in names if isinstance(file[name], h5py.Dataset))


def layer(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The description of a layer, at any depth."""
    return next(part for part in scan._objects(config) if part.get("config", {}).get("name") == name)


def test_a_sound_file_is_taken_packed_or_not(members, tmp_path):
    assert saved.find(packed(tmp_path / "a.keras", members)).size == 32
    assert saved.find(packed(tmp_path / "b.keras", members, zipfile.ZIP_DEFLATED)).size == 32


@pytest.mark.parametrize("name", parameters())
def test_what_networks_are_made_of_is_allowed(name):
    model = build(baseline(family(name)), 32, RANDOM, 7).classifier()
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    assert scan._image_size_and_classes(config) == (32, 7)


def test_gigabytes_in_a_small_file_are_not_unpacked(members, tmp_path):
    """3 GiB of config.json took 90 seconds."""
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(METADATA, members[METADATA])
        archive.writestr(WEIGHTS, members[WEIGHTS])
        with archive.open(CONFIG, "w") as config:
            for _ in range(40):
                config.write(b" " * (1 << 20))
    assert path.stat().st_size < 2 << 20
    assert "config.json unpacks to 41,943,040 bytes, more than the 16,777,216" in refusal(str(path))


def test_packed_zeros_are_no_weights(members, tmp_path):
    zeros = packed(tmp_path / "m.keras", members | {WEIGHTS: bytes(30 << 20)}, zipfile.ZIP_DEFLATED)
    assert "bytes of its model.weights.h5 unpack to 31,457,280" in refusal(zeros)


def test_a_directory_that_lies_about_sizes_unpacks_no_more_than_it_says(members, tmp_path):
    path = Path(packed(tmp_path / "m.keras", members | {METADATA: b" " * 900_000}, zipfile.ZIP_DEFLATED))
    content, said = path.read_bytes(), struct.pack("<I", 900_000)
    assert content.count(said) >= 2
    path.write_bytes(content.replace(said, struct.pack("<I", 64)))
    assert "damaged: the checksum of its metadata.json" in refusal(str(path))


def test_a_file_over_the_limit_is_not_read(members, tmp_path, monkeypatch):
    place = packed(tmp_path / "m.keras", members)
    monkeypatch.setattr(scan, "MAX_BYTES", 1000)
    monkeypatch.setattr(scan, "_unpacked", None)
    assert "bytes, more than the 1,000" in refusal(place)


def test_a_zip_of_very_many_members_is_refused_before_they_are_listed(members, tmp_path, monkeypatch):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70_000):  # more than fit in a zip that is not zip64
            archive.writestr(zipfile.ZipInfo(str(number)), b"")
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "a zip of more members than" in refusal(str(path))


@pytest.mark.parametrize(
    "extra", ["../../evil.txt", "/etc/passwd", "assets/vocabulary.txt", "model.weights.npz", "\x1b[31m"]
)
def test_members_of_other_names_are_refused(members, tmp_path, extra):
    instead = {extra if name == METADATA else name: content for name, content in members.items()}
    text = refusal(packed(tmp_path / "m.keras", instead))
    assert "holds or lacks" in text and f"{extra!a}" in text and "\x1b" not in text
    assert "a zip of more members" in refusal(packed(tmp_path / "n.keras", members | {extra: b"x"}))


def test_a_name_twice_is_refused(members, tmp_path):
    path = tmp_path / "m.keras"
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as archive:
        for name in (CONFIG, WEIGHTS, CONFIG):
            archive.writestr(name, members[name])
    assert "two of its members have one name" in refusal(str(path))


OURS = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]


def recorded(members: dict[str, bytes], classes: Any) -> dict[str, bytes]:
    """The members with these classes in the metadata."""
    return members | {METADATA: json.dumps(json.loads(members[METADATA]) | {saving.CLASSES: classes}).encode()}


def test_a_saved_classifier_names_its_classes_and_loads_anywhere(members, tmp_path):
    classifier = build(baseline("simple_cnn"), 32, RANDOM, 7).classifier()
    save(classifier, tmp_path / "run.keras", CLASSES.codes)
    (tmp_path / "elsewhere").mkdir()
    alone = tmp_path / "elsewhere" / "copy.keras"
    alone.write_bytes((tmp_path / "run.keras").read_bytes())
    with zipfile.ZipFile(alone) as archive:
        metadata = json.loads(archive.read(METADATA))
    assert metadata[saving.CLASSES] == OURS and metadata["keras_version"] == keras.__version__
    assert saved.find(str(alone)).size == 32
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for loaded in (saved.load(str(alone)), keras.models.load_model(alone)):
        np.testing.assert_array_equal(loaded(pixels), classifier(pixels))


def test_a_model_of_known_classes_in_another_order_is_refused_and_both_are_named(members, tmp_path):
    classes = ["bcc", "akiec", *OURS[2:]]
    place = packed(tmp_path / "m.keras", recorded(members, classes))
    for opened in (saved.find, saved.load):
        text = refusal(place, opened)
        assert f"gives probabilities of '{', '.join(classes)}', in this order" in text
        assert f"here they are of '{', '.join(OURS)}'" in text


def test_a_model_of_other_classes_is_one_of_those(members, tmp_path):
    classes = (*OURS[:6], "wart")
    found = saved.find(packed(tmp_path / "m.keras", recorded(members, [*classes])))
    assert found.classes.codes == classes and found.classes.focus == "mel"
    assert found.classes.malignant == []  # of a wart nobody says it


@pytest.mark.parametrize("classes", [OURS[:6], [*OURS, "wart"], ["a"] * 7])
def test_as_many_classes_as_probabilities(members, tmp_path, classes):
    text = refusal(packed(tmp_path / "m.keras", recorded(members, classes)))
    assert "gives 7 probabilities and is of" in text or "in this order" in text


def test_a_model_that_names_no_classes_is_one_of_older_code_and_is_taken(members, tmp_path):
    assert saving.CLASSES not in json.loads(members[METADATA])
    assert saved.find(packed(tmp_path / "m.keras", members)).size == 32
    assert saved.find(packed(tmp_path / "n.keras", recorded(members, OURS))).size == 32


@pytest.mark.parametrize("classes", ["mel", 7, [1, 2], [["mel"] * 7], {"mel": 4}, ["\x1b[31m\n" * 10_000] * 7, []])
def test_what_is_no_list_of_classes_is_refused(members, tmp_path, classes):
    text = refusal(packed(tmp_path / "m.keras", recorded(members, classes)))
    assert "names no classes: " in text and "\x1b" not in text


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff"])
def test_damaged_metadata_is_one_line(members, tmp_path, content):
    assert "its metadata.json is n" in refusal(packed(tmp_path / "m.keras", members | {METADATA: content}))


@pytest.mark.parametrize("missing", [CONFIG, METADATA, WEIGHTS])
def test_a_missing_member_is_named(members, tmp_path, missing):
    text = refusal(packed(tmp_path / "m.keras", {name: members[name] for name in members if name != missing}))
    assert ("no Keras 3 file" if missing == CONFIG else f"holds or lacks '{missing}'") in text


def test_an_encrypted_file_is_refused(members, tmp_path):
    path = Path(packed(tmp_path / "m.keras", members))
    content = bytearray(path.read_bytes())
    start = -1
    while (start := content.find(b"PK\x01\x02", start + 1)) >= 0:
        content[start + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted" in refusal(str(path))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[]", "is no classifier of this project"),
        (b"null", "is no classifier of this project"),
        (b'"text"', "is no classifier of this project"),
        (b"{}", "is no classifier of this project"),
        (b'{"config": [1]}', "is no classifier of this project"),
        (b'{"config": {"layers": {"a": 1}}}', "is no classifier of this project"),
        (b'{"config": {"layers": [null, 3]}}', "is no classifier of this project"),
        (b"", "its config.json is no JSON"),
        (b"{", "its config.json is no JSON"),
        (b"\xff\xfe\x00", "its config.json is no JSON"),
        (b"[" * 200_000, "nested too deep"),
        (b"[" * 500 + b"]" * 500, "nested deeper than 100"),
        (b'{"a":' * 150 + b"1" + b"}" * 150, "nested deeper than 100"),
        (b"1" * 5000, "its config.json is no JSON"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[:12]),
)
def test_descriptions_that_are_none(members, tmp_path, content, told):
    assert told in refusal(packed(tmp_path / "m.keras", members | {CONFIG: content}))


FOREIGN = [
    {"class_name": "Lambda", "module": "keras.layers", "config": {"name": "x"}},
    {"class_name": "__lambda__", "config": {"value": "x"}},
    {"class_name": "system", "module": "os", "config": {}},
    {"class_name": "function", "module": "builtins", "config": "eval", "registered_name": "function"},
    {"class_name": "function", "module": "keras.utils", "config": "get_file", "registered_name": "get_file"},
    {"class_name": "TFSMLayer", "module": "keras.layers", "config": {"filepath": "/tmp/x"}},
    {"class_name": "StringLookup", "module": "keras.layers", "config": {"vocabulary": "/etc/passwd"}},
    {"class_name": "Conv2D", "module": "keras.layers", "config": {}, "registered_name": "theirs>Conv2D"},
    {"class_name": "Model", "module": "keras.src.models.model", "config": {}},
    {"class_name": "__typespec__", "module": "tensorflow", "spec_name": "x", "config": []},
    {"class_name": "Dense", "config": {}},
    {"class_name": ["Dense"], "module": "keras.layers", "config": {}},
    {"class_name": "Dense", "module": {"keras": "layers"}, "config": {}},
]


@pytest.mark.parametrize("part", FOREIGN, ids=lambda part: f"{part.get('module')}.{part['class_name']}"[:40])
def test_anything_that_these_models_are_not_made_of_is_refused(members, tmp_path, part):
    hidden = described(members, lambda config: layer(config, "logits")["config"].update(kernel_initializer=part))
    beside = described(members, lambda config: config.update(compile_config={"loss": [part]}))
    for number, changed in enumerate((hidden, beside)):
        place = packed(tmp_path / f"{number}.keras", changed)
        for opened in (saved.find, saved.load):
            assert "cannot be loaded safely: it holds code or layers of its own" in refusal(place, opened)


@pytest.mark.parametrize("width", [10**9, -1, 0, "7", None, 2.5])
def test_layers_of_absurd_width_are_not_built(members, tmp_path, width):
    changed = described(members, lambda config: layer(config, "conv1")["config"].update(filters=width))
    assert "no width from 1 to 16,384" in refusal(packed(tmp_path / "m.keras", changed))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"projection_dim": 10**9}, "no width from 1 to 16,384"),
        ({"target_shape": [1, 10**9]}, "no width from 1 to 16,384"),
        ({"target_shape": [-1]}, "no width from 1 to 16,384"),
        ({"depth_multiplier": 10**6}, "a layer multiplies channels, or normalises along more"),
        ({"axis": [1, 2, 3]}, "a layer multiplies channels, or normalises along more"),
        ({"axis": 1}, "a layer multiplies channels, or normalises along more"),
    ],
)
def test_layers_of_other_kinds_have_limits_too(members, tmp_path, facts, message):
    changed = described(members, lambda config: layer(config, "bn1")["config"].update(facts))
    assert message in refusal(packed(tmp_path / "m.keras", changed))


def test_many_wide_layers_are_not_built(members, tmp_path):
    """Each is allowed; built, they would take 16 GB."""

    def change(config: dict[str, Any]) -> None:
        for name in ("conv1", "conv2"):
            layer(config, name)["config"].update(filters=16384, kernel_size=[3, 3])

    assert "its layers may take" in refusal(packed(tmp_path / "m.keras", described(members, change)))


@pytest.mark.parametrize("shape", [[None, 10**9], [[None, 4], [None, 10**9]], "wide", [None, "3"]])
def test_layers_are_not_built_for_absurd_shapes(members, tmp_path, shape):
    changed = described(members, lambda config: layer(config, "logits")["build_config"].update(input_shape=shape))
    assert "no width from 1 to 16,384" in refusal(packed(tmp_path / "m.keras", changed))


@pytest.mark.parametrize("shape", [[None, 10**6, 10**6, 3], [None, 0, 0, 3], [None, None, None, 3]])
def test_images_of_absurd_size_are_refused(members, tmp_path, shape):
    changed = described(members, lambda config: config["config"]["layers"][0]["config"].update(batch_shape=shape))
    assert "at most 1,024 are possible" in refusal(packed(tmp_path / "m.keras", changed))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(members, tmp_path, value):
    def change(file: h5py.File) -> None:
        first_array(file)[..., 0] = value

    assert "are not all finite (NaN or infinity)" in refusal(packed(tmp_path / "m.keras", weighed(members, change)))


def external(file: h5py.File) -> None:
    file["evil"] = h5py.ExternalLink("/etc/passwd", "/")


def soft(file: h5py.File) -> None:
    file["evil"] = h5py.SoftLink("/layers")


def elsewhere(file: h5py.File) -> None:
    file.create_dataset("evil", (10,), "f4", external=[("/etc/passwd", 0, 40)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (10,))
    file.create_virtual_dataset("evil", layout)


def objects(file: h5py.File) -> None:
    file.create_dataset("evil", data="text", dtype=h5py.string_dtype())


def huge(file: h5py.File) -> None:
    file.create_dataset("evil", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (external, "holds links: 'evil'"),
        (soft, "holds links: 'evil'"),
        (elsewhere, "'evil' in its model.weights.h5 is no array of numbers within it"),
        (virtual, "'evil' in its model.weights.h5 is no array of numbers within it"),
        (objects, "'evil' in its model.weights.h5 is no array of numbers within it"),
        (huge, "its weights take 4,398,"),
    ],
)
def test_arrays_that_lie_elsewhere_or_are_huge_are_not_read(members, tmp_path, change, told):
    assert told in refusal(packed(tmp_path / "m.keras", weighed(members, change)))


def test_groups_that_hold_themselves_end(members, tmp_path):
    def change(file: h5py.File) -> None:
        file["layers/again"] = file["layers"]

    assert saved.find(packed(tmp_path / "m.keras", weighed(members, change))).size == 32


@pytest.mark.parametrize("content", [b"", b"no hdf5", b"\x89HDF\r\n\x1a\n" + b"\0" * 500])
def test_weights_that_are_no_hdf5(members, tmp_path, content):
    assert "its model.weights.h5 cannot be read" in refusal(packed(tmp_path / "m.keras", members | {WEIGHTS: content}))


def test_missing_or_other_variables_are_one_line_at_loading(members, tmp_path):
    def remove(file: h5py.File) -> None:
        array = first_array(file)
        del array.parent[array.name.rpartition("/")[2]]

    def remove_all(file: h5py.File) -> None:
        del file["layers/functional"]

    def remove_group(file: h5py.File) -> None:
        del file["layers/functional/layers/functional/layers/conv2d_1"]

    def reshape(file: h5py.File) -> None:
        array = first_array(file)
        parent, name = array.parent, array.name.rpartition("/")[2]
        del parent[name]
        parent[name] = np.zeros((3, 3), np.float32)

    for number, change in enumerate((remove, remove_group, remove_all, reshape)):
        place = packed(tmp_path / f"{number}.keras", weighed(members, change))
        with pytest.raises(UserError, match=r"cannot be loaded: .*; save or copy it again") as caught:
            saved.load(place)
        assert "\n" not in str(caught.value)


def test_a_description_that_cannot_be_built_is_one_line(members, tmp_path):
    changed = described(members, lambda config: layer(config, "conv1")["config"].update(padding="wide"))
    with pytest.raises(UserError, match="cannot be loaded: ") as caught:
        saved.load(packed(tmp_path / "m.keras", changed))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["model.keras", "calibration.json", "split.parquet"])
def test_a_pipe_or_folder_in_place_of_a_file_is_refused(members, tmp_path, name):
    packed(tmp_path / "model.keras", members)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is no plain file"):
        saved.find(str(tmp_path / "model.keras"))
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is no plain file"):
        saved.find(str(tmp_path / "model.keras"))


GOOD = {"temperature": 2.0, "tau": 0.5, "prior": [0.1] * 6 + [0.4], "thresholds": {"specificity_90": 0.3}}
DAMAGED = [
    ("calibration.json", b"[1]"),
    ("calibration.json", b"null"),
    ("calibration.json", b"{"),
    ("calibration.json", b"[" * 100_000),
    ("calibration.json", b'{"temperature": 1}'),
    ("calibration.json", json.dumps(GOOD | {"surplus": 1}).encode()),
    ("calibration.json", json.dumps(GOOD | {"temperature": "2"}).encode()),
    ("calibration.json", json.dumps(GOOD | {"temperature": 0}).encode()),
    ("calibration.json", json.dumps(GOOD | {"tau": float("nan")}).encode()),
    ("calibration.json", json.dumps(GOOD | {"prior": [0.5, 0.5]}).encode()),
    ("calibration.json", json.dumps(GOOD | {"prior": 3}).encode()),
    ("calibration.json", json.dumps(GOOD | {"thresholds": {"specificity_90": None}}).encode()),
    ("data_card.json", b"[]"),
    ("data_card.json", b'{"geometry": ["crop"]}'),
    ("data_card.json", b'{"geometry": "round"}'),
    ("metrics.json", b"3"),
    ("metrics.json", b'{"info": [1]}'),
    ("metrics.json", b'{"info": {"weights": 3}}'),
    ("split.parquet", b"PAR1 no table"),
    ("split.parquet", b""),
]


@pytest.mark.parametrize(("name", "content"), DAMAGED, ids=lambda value: str(value[:40]))
def test_a_damaged_file_beside_a_model_is_one_line_that_names_it(members, tmp_path, name, content):
    packed(tmp_path / "model.keras", members)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*\): copy it again from its run, or move it away$"):
        saved.find(str(tmp_path))


@pytest.mark.parametrize(
    "table", [{"image_id": ["a"]}, {"image_id": ["a"], "group_id": ["b"], "split": ["exam"]}], ids=["columns", "split"]
)
def test_a_table_of_splits_of_another_form_is_refused(members, tmp_path, table):
    packed(tmp_path / "model.keras", members)
    pd.DataFrame(table).to_parquet(tmp_path / "split.parquet")
    with pytest.raises(UserError, match=r"split.parquet is damaged"):
        saved.find(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"members": []},
        {"members": {"4": "trial-4-seed-0"}},
        {"members": {"4": []}},
        {"members": {"4": ["../elsewhere"]}},
        {"members": {"4": [3]}},
        {"views": 0},
        {"views": "8"},
        {"calibration": None},
    ],
)
def test_a_damaged_winner_is_one_line(tmp_path, change):
    winner = {"trial": 4, "members": {"4": ["trial-4-seed-0"]}, "views": 8, "calibration": GOOD}
    (tmp_path / "winner.json").write_text(json.dumps(winner | change))
    with pytest.raises(UserError, match=r"winner.json is damaged"):
        saved.find(str(tmp_path))
