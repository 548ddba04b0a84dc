"""Storage: whole files or none, URIs, and clear refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ham_ray import storage
from ham_ray.errors import UserError

pytestmark = pytest.mark.unit


def test_what_is_written_is_read_and_listed(tmp_path: Path):
    place = storage.join(tmp_path, "a", "b.txt")
    storage.write_bytes(place, b"content")
    assert storage.read_bytes(place) == b"content"
    assert storage.listdir(storage.join(tmp_path, "a")) == ["b.txt"]
    assert storage.exists(place) and not storage.exists(place + "x")
    assert storage.folders(tmp_path) == [str(tmp_path / "a")] and storage.folders(tmp_path / "a") == []


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    place = tmp_path / "table"
    storage.write_bytes(place, b"old")
    with pytest.raises(RuntimeError), storage.writing(place) as path:
        path.write_bytes(b"half of the n")
        raise RuntimeError
    assert place.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["table"]


def test_remove_takes_files_and_folders_and_forgives_absence(tmp_path: Path):
    storage.write_bytes(tmp_path / "f" / "g", b"")
    for _ in range(2):
        storage.remove(tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_an_object_stores_query_stays_at_the_end():
    assert storage.join("s3://bucket/runs?region=x", "a", "b") == "s3://bucket/runs/a/b?region=x"
    assert storage.absolute("s3://bucket/x") == "s3://bucket/x"


def test_an_unknown_scheme_is_refused_in_words():
    with pytest.raises(UserError, match="cannot open 'ftp://host/x'.*use a local path, s3://"):
        storage.resolve("ftp://host/x")


def test_file_uris_are_local_paths(tmp_path: Path):
    storage.write_bytes(f"file://{tmp_path}/x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


@pytest.mark.job
def test_a_folder_is_held_by_one_process_and_free_when_it_dies(tmp_path: Path):
    code = (
        "import sys, time\nfrom ham_ray.storage import locked\n"
        "with locked(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is at work in"), storage.locked(str(tmp_path)):
            pytest.fail("entered")
        holder.kill()
    with storage.locked(str(tmp_path)):
        pass


@pytest.mark.parametrize(("held", "asked"), [(True, False), (False, True), (False, False)])
def test_a_folder_that_is_shared_is_held_against_those_that_do_not(tmp_path: Path, held: bool, asked: bool):
    folder = str(tmp_path)
    with storage.locked(folder, shared=True), storage.locked(folder, shared=True):
        pass
    busy = pytest.raises(UserError, match="another process is at work in")
    with storage.locked(folder, shared=held), busy, storage.locked(folder, shared=asked):
        pytest.fail("entered")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"3", b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_json_that_is_no_object_is_one_line_with_its_remedy(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a.json is damaged \(.*\): delete it$"):
        storage.read_object(tmp_path / "a.json", "delete it")


def test_json_objects_are_read_and_none_is_empty(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert storage.read_object(tmp_path / "a.json") == {"a": 1} and storage.read_object(tmp_path / "b.json") == {}


def test_what_is_large_or_no_plain_file_is_not_read(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"x" * 11)
    os.mkfifo(tmp_path / "pipe")
    assert storage.read_limited(tmp_path / "a", 11) == b"x" * 11
    with pytest.raises(UserError, match="a has 11 bytes, more than the 10 that are read"):
        storage.read_limited(tmp_path / "a", 10)
    for name in ("pipe", "."):
        with pytest.raises(UserError, match=r"--model .* is no plain file"):
            storage.read_limited(tmp_path / name, 10, "--model")
