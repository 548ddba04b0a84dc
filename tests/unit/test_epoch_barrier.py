"""How a training passes its barrier: all epochs reported, and a decision waited for where more are to come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ham_ray.training import callbacks
from ham_ray.training.callbacks import Barrier

pytestmark = pytest.mark.unit
EPOCHS = 3


def barrier(told: list[list[dict[str, Any]]], leave: bool) -> SimpleNamespace:
    """A barrier without Ray that decides at once."""
    report, decision = SimpleNamespace(remote=told.append), SimpleNamespace(remote=lambda epoch: leave)
    return SimpleNamespace(report=report, decision=decision)


def history(epochs: int) -> list[dict[str, Any]]:
    return [{"epoch": epoch} for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize("leave", [True, False])
def test_a_training_that_goes_on_tells_what_was_trained_before_and_waits_for_leave(monkeypatch, leave: bool):
    monkeypatch.setattr(callbacks.ray, "get", lambda found: found)
    told: list[list[dict[str, Any]]] = []
    go_on = Barrier(barrier(told, leave), EPOCHS, rank=0).may_go_on
    assert go_on([]) and not told
    assert go_on(history(2)) is leave and told == [history(2)]
    assert go_on(history(3)) and told[-1] == history(3)  # nothing is left to be stopped


def test_only_the_first_worker_tells(monkeypatch):
    monkeypatch.setattr(callbacks.ray, "get", lambda found: found)
    told: list[list[dict[str, Any]]] = []
    assert Barrier(barrier(told, True), EPOCHS, rank=1).may_go_on(history(1)) and not told
