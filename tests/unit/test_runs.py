"""Run folders: a name is one recipe on one data set, for good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ham_ray import hardware, runs
from ham_ray.errors import UserError

pytestmark = pytest.mark.unit
IDENTITY = {"recipe": {"epochs": 3, "seed": 0}, "data": {"fingerprint": "abc"}}


def test_the_same_run_goes_on(tmp_path: Path):
    runs.claim(str(tmp_path / "run"), IDENTITY)
    runs.claim(str(tmp_path / "run"), IDENTITY)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"recipe": {"epochs": 5, "seed": 0}, "data": {"fingerprint": "abc"}}, "recipe.epochs was 3, is 5"),
        ({"recipe": {"epochs": 3, "seed": 0}, "data": {"fingerprint": "xyz"}}, "data.fingerprint was 'abc', is 'xyz'"),
        ({"recipe": {"epochs": 3}, "data": {"fingerprint": "abc"}}, "recipe.seed was 0, is None"),
    ],
)
def test_another_recipe_or_other_data_is_refused_with_the_difference(tmp_path: Path, other: dict, message: str):
    runs.claim(str(tmp_path / "run"), IDENTITY)
    with pytest.raises(UserError, match=f"is another run: {message}. Give another --name"):
        runs.claim(str(tmp_path / "run"), other)


def test_every_start_is_in_the_manifest(tmp_path: Path):
    place = str(tmp_path / "environment.json")
    runs.record_start(place)
    runs.record_start(place)
    starts = json.loads(Path(place).read_text())["starts"]
    assert len(starts) == 2 and runs.last_start(place) == starts[1]["time"]
    assert runs.last_start(str(tmp_path / "none.json")) == ""


def test_the_manifest_tells_command_commit_machine_and_versions():
    manifest = runs.environment()
    assert {"command", "commit", "code", "machine", "time", "python"} <= manifest.keys()
    assert {"ray", "keras", "numpy"} <= manifest["packages"].keys()


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("GenuineIntel", "avx512f avx512_bf16 amx_tile amx_bf16", True),
        ("GenuineIntel", "avx512f avx512_bf16 avx512_fp16", False),  # a virtual machine that hides AMX
        ("AuthenticAMD", "avx512f", False),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster_not_where_it_only_exists(
    monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str, fast: bool
):
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: {"vendor_id": vendor, "flags": flags})
    assert hardware.fast_in_bfloat16() is fast
