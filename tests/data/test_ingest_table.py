"""What stands in a finished table: pixels, columns, files, fingerprint, data card; and the drawn sample."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ham_ray.data import card, chunks, pictures, table
from ham_ray.data.images import SCHEMA, open_images
from ham_ray.data.ingest import ingest
from ham_ray.data.layouts import open_archive
from ham_ray.data.sample import write_sample
from ham_ray.data.stored import decode
from ham_ray.errors import UserError

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample") / "sample.zip")


@pytest.fixture(scope="module")
def report(drawn, tmp_path_factory):
    return ingest(drawn, tmp_path_factory.mktemp("table") / "images", size=32)


def test_files_schema_and_row_groups(report):
    file = pq.ParquetFile(Path(report.uri, "images-00000.parquet"))
    assert file.schema_arrow.equals(SCHEMA)
    metadata = file.schema_arrow.metadata
    assert metadata[b"ham_ray.schema_version"] == b"2" and metadata[b"ham_ray.size"] == b"32"
    assert metadata[b"ham_ray.fingerprint"].decode() == report.card["fingerprint"]
    folds = [set(file.read_row_group(i, columns=["fold"])["fold"].to_pylist()) for i in range(file.num_row_groups)]
    assert {len(one) for one in folds} == {1}
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) == 32


def test_rows_are_stored_in_an_order_that_knows_neither_class_nor_name(report):
    rows = open_images(report.uri).rows
    assert rows["fold"].is_monotonic_increasing
    for _, fold in rows.groupby("fold"):
        hashes = [hashlib.sha256(image_id.encode()).hexdigest() for image_id in fold["image_id"]]
        assert hashes == sorted(hashes) and not fold["image_id"].is_monotonic_increasing
    neighbours = np.corrcoef(rows["label"][:-1], rows["label"][1:])[0, 1]
    by_class = np.sort(rows["label"])
    assert abs(neighbours) < 0.1 < np.corrcoef(by_class[:-1], by_class[1:])[0, 1]


def test_tables_are_cut_into_files(report, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_images_a_file", lambda size: 100)
    rows = open_images(report.uri).rows
    whole = pq.read_table(Path(report.uri, "images-00000.parquet"))
    table.write(tmp_path, rows, lambda numbers: whole.take(numbers), {"size": "32"}, 32)
    sizes = [pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("images-*.parquet"))]
    assert sizes == [100, 100, 100, 100, len(whole) - 400]
    assert pq.read_table(tmp_path)["image"].to_pylist() == whole["image"].to_pylist()


def test_thumbnails_are_those_of_the_stored_images(report):
    whole = pq.read_table(Path(report.uri, "images-00000.parquet"), columns=["image", "thumbnail"]).slice(0, 20)
    for image, thumbnail in zip(whole["image"].to_pylist(), whole["thumbnail"].to_pylist(), strict=True):
        small = Image.fromarray(decode(image)).resize((12, 9), Image.Resampling.BILINEAR)
        assert thumbnail == small.tobytes()


@pytest.mark.parametrize("geometry, corner_is_red", [("squash", True), ("crop", False)])
def test_geometry(geometry, corner_is_red):
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, :20] = pixels[:, 80:] = (255, 0, 0)  # outside of the centre square of 60
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    picture = pictures.prepare(buffer.getvalue(), 20, geometry)
    stored = decode(picture.encoded)
    assert (picture.width, picture.height) == (100, 60)
    assert stored.shape == (20, 20, 3) and stored.dtype == np.uint8
    assert bool((stored[:, 0] == (255, 0, 0)).all()) == corner_is_red
    assert (stored[10, 10] == 0).all()
    assert (picture.moments[0] == stored.reshape(-1, 3).astype(int).sum(axis=0)).all()
    assert (picture.moments[1] == (stored.reshape(-1, 3).astype(int) ** 2).sum(axis=0)).all()


def test_stored_pixels_are_exactly_the_resized_ones(draw):
    image = pictures.resized(draw(3, (200, 150)), 128, "squash")
    assert np.array_equal(decode(pictures.encode(image)), np.asarray(image))


def test_reduced_decoding_is_close_to_the_full_one(draw):
    data = draw(3, (600, 450))
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)
    reduced = pictures.resized(data, 128, "squash")
    difference = np.abs(np.asarray(full).astype(int) - np.asarray(reduced))
    assert 0 < difference.max() <= 12 and difference.mean() < 1


def test_grey_and_transparent_images_become_rgb():
    for mode, colour in (("L", 90), ("RGBA", (90, 90, 90, 255)), ("P", 7), ("CMYK", (9, 9, 9, 9))):
        buffer = io.BytesIO()
        Image.new(mode, (40, 30), colour).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
        assert decode(pictures.prepare(buffer.getvalue(), 16, "squash").encoded).shape == (16, 16, 3)


def test_the_fingerprint_follows_content_not_row_order(report):
    rows = open_images(report.uri).rows
    assert card.fingerprint(rows.sample(frac=1, random_state=0), 32, "crop") == report.card["fingerprint"]
    for column, value in (("dx", "mel"), ("group_id", "x"), ("fold", 9), ("pixel_hash", "0"), ("image_id", "A")):
        changed = rows.copy()
        changed.loc[0, column] = value
        assert card.fingerprint(changed, 32, "crop") != report.card["fingerprint"]
    assert card.fingerprint(rows, 48, "crop") != report.card["fingerprint"]
    assert card.fingerprint(rows, 32, "squash") != report.card["fingerprint"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("dataset.json", b"[]", r"dataset.json is damaged \(a list, no object\): ingest it again"),
        ("dataset.json", b"{", r"dataset.json is damaged \(no JSON\): ingest it again"),
        ("dataset.json", b"{}", "has schema version None"),
        ("images-00000.parquet", b"PAR1 cut", "is damaged .*ingest it again, or copy it whole"),
    ],
)
def test_a_damaged_table_is_one_line(report, tmp_path, name, content, reason):
    shutil.copytree(report.uri, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        open_images(str(tmp_path / "copy"))
    assert "\n" not in str(caught.value)


def test_folder_and_zip_have_one_fingerprint(builder, tmp_path):
    one = ingest(builder.to_folder(), tmp_path / "one", size=32)
    two = ingest(builder.to_zip(), tmp_path / "two", size=32)
    assert one.card["fingerprint"] == two.card["fingerprint"]


def test_the_data_card(report):
    rows = open_images(report.uri).rows
    found = json.loads(Path(report.uri, "dataset.json").read_text())
    assert found == report.card
    assert found["synthetic"] is True and "CC BY-NC" not in found["licence"] and "synthetic" in found["licence"]
    assert sum(counts["images"] for counts in found["classes"].values()) == found["images"] == len(rows)
    assert sum(sum(fold.values()) for fold in found["folds"].values()) == len(rows)
    assert found["folds"]["0"]["mel"] == ((rows["fold"] == 0) & (rows["dx"] == "mel")).sum()
    assert found["missing"]["age"] == rows["age"].isna().sum() > 0
    images = pq.read_table(report.uri + "/images-00000.parquet")["image"].to_pylist()
    pixels = np.stack([decode(image) for image in images]).reshape(-1, 3) / 255
    assert np.allclose(found["channel_mean"], pixels.mean(axis=0), atol=1e-5)
    assert np.allclose(found["channel_std"], pixels.std(axis=0), atol=1e-5)


def test_the_licence_of_real_data(builder, tmp_path):
    report = ingest(builder.to_folder(), tmp_path / "out", size=32)
    assert report.card["synthetic"] is False
    assert report.card["licence"].startswith("CC BY-NC 4.0") and "ViDIR Group" in report.card["attribution"]


def test_the_sample_is_deterministic_and_unbalanced(drawn, tmp_path):
    assert write_sample(tmp_path / "again.zip").read_bytes() == drawn.read_bytes()
    assert write_sample(tmp_path / "other.zip", seed=1).read_bytes() != drawn.read_bytes()
    archive = open_archive(drawn)
    lesions = archive.metadata.drop_duplicates("lesion_id")["dx"].value_counts()
    assert archive.synthetic and archive.layout == "kaggle" and 400 <= len(archive.metadata) <= 500
    assert lesions.min() == 10 and lesions["nv"] > lesions.sum() / 2 and len(lesions) == 7
    assert all(image_id.startswith("SYNTHETIC_") for image_id in archive.images)


def test_the_sample_can_be_learned_but_not_perfectly(drawn, tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.preprocessing import StandardScaler

    report = ingest(drawn, tmp_path / "images", size=16)
    rows = open_images(report.uri).rows
    images = pq.read_table(report.uri + "/images-00000.parquet")["image"].to_pylist()
    x = StandardScaler().fit_transform(np.stack([decode(image).ravel() for image in images]))
    test = (rows["fold"] == 0).to_numpy()
    model = LogisticRegression(class_weight="balanced", C=0.01, max_iter=300).fit(x[~test], rows["label"][~test])
    assert 0.3 < balanced_accuracy_score(rows["label"][test], model.predict(x[test])) < 0.95


def test_small_samples_have_all_classes(tmp_path):
    archive = open_archive(write_sample(tmp_path / "small.zip", lesions=14, size=(40, 30)))
    assert archive.metadata.drop_duplicates("lesion_id")["dx"].value_counts().to_dict() == dict.fromkeys(
        ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"], 2
    )


class FakeRay(SimpleNamespace):
    """The calls of Ray that the executor makes; the last task started is the first to end."""

    def __init__(self, nodes: int) -> None:
        node = {"Alive": True, "NodeID": "n", "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 1.0}}
        super().__init__(tasks={}, most=0, is_initialized=lambda: True)
        self.nodes = lambda: [node] * nodes + [{**node, "Alive": False}]
        self.cluster_resources = lambda: {"CPU": 2.0}

    def remote(self, **resources):
        assert resources == {"num_cpus": 1}

        def start(function, *arguments):
            self.tasks[len(self.tasks)] = (function, arguments)
            return len(self.tasks) - 1

        return lambda function: SimpleNamespace(
            options=lambda name: SimpleNamespace(remote=lambda *arguments: start(function, *arguments))
        )

    def wait(self, references, num_returns):
        self.most = max(self.most, len(references))
        return references[-1:], references[:-1]

    def get(self, reference):
        function, arguments = self.tasks[reference]
        return function(*arguments)


def test_on_a_cluster_chunks_are_ray_tasks_a_bounded_number_at_once(drawn, report, tmp_path, monkeypatch):
    monkeypatch.setattr("ham_ray.data.ingest.CHUNK", 32)
    ray = FakeRay(nodes=2)
    monkeypatch.setitem(sys.modules, "ray", ray)
    looked_at = []
    monkeypatch.setattr("ham_ray.data.chunks.check_visible", lambda path, option: looked_at.append((path, option)))
    distributed = ingest(drawn, tmp_path / "out", size=32)
    assert looked_at == [(str(drawn), "archive")]  # on every node, before any task
    assert distributed.notes[0] == "ran on Ray tasks on 2 nodes"
    assert ray.most == 4 and len(ray.tasks) == -(-report.card["images"] // 32)
    assert distributed.card["fingerprint"] == report.card["fingerprint"]
    monkeypatch.setitem(sys.modules, "ray", FakeRay(nodes=1))
    assert chunks.default_executor(str(drawn))[0] is chunks.over_threads


def test_uploads_to_a_uri_end_with_the_data_card(drawn, report, tmp_path, monkeypatch):
    from ham_ray import storage

    order = []
    monkeypatch.setattr("ham_ray.data.ingest.storage.write_bytes", recording(storage.write_bytes, order))
    monkeypatch.setattr(storage, "is_remote", lambda uri: str(uri).startswith(str(tmp_path / "bucket")))
    monkeypatch.setattr(
        storage, "_upload", lambda source, uri: (Path(uri).parent.mkdir(exist_ok=True), Path(source).replace(uri))
    )
    uploaded = ingest(drawn, tmp_path / "bucket", size=32)
    names = [Path(uri).name for uri in order if str(uri).startswith(str(tmp_path / "bucket"))]
    assert names == ["images-00000.parquet", "quarantine.csv", "dataset.json"]
    assert open_images(uploaded.uri).fingerprint == report.card["fingerprint"]


def recording(function, order):
    def recorded(uri, data):
        order.append(uri)
        return function(uri, data)

    return recorded
