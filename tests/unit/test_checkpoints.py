"""Checkpoints: the newest readable one, never a torn one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ham_ray.training.checkpoints import Checkpoint, Checkpoints

pytestmark = pytest.mark.unit


def saved(folder: Path, epochs: int) -> Checkpoints:
    checkpoints = Checkpoints(str(folder))
    for epoch in range(1, epochs + 1):
        checkpoints.save(epoch, Checkpoint({"w": np.full(1000, epoch, np.float32)}, {"epoch": epoch}))
    return checkpoints


def test_there_is_none_at_first(tmp_path: Path):
    assert Checkpoints(str(tmp_path / "none")).latest() is None


def test_the_latest_comes_back_and_two_are_kept(tmp_path: Path):
    latest = saved(tmp_path, 4).latest()
    assert latest is not None and latest.facts == {"epoch": 4}
    np.testing.assert_array_equal(latest.arrays["w"], np.full(1000, 4, np.float32))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-00003.npz", "epoch-00004.npz"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit flipped"])
def test_a_damaged_one_is_passed_over_and_said(tmp_path: Path, damage: str):
    checkpoints = saved(tmp_path, 4)
    newest = tmp_path / "epoch-00004.npz"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "bit flipped": content}[damage])
    said: list[str] = []
    latest = checkpoints.latest(said.append)
    assert latest is not None and latest.facts == {"epoch": 3}
    assert len(said) == 1 and "epoch-00004.npz is damaged" in said[0]


def test_what_a_killed_writer_left_is_not_read(tmp_path: Path):
    checkpoints = saved(tmp_path, 2)
    (tmp_path / ".epoch-00003.npz.123.part.npz").write_bytes(b"half")
    latest = checkpoints.latest()
    assert latest is not None and latest.facts == {"epoch": 2}
