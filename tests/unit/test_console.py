"""Progress outside a terminal: a line now and then, with pace and time left."""

from __future__ import annotations

import pytest

from ham_ray import console

pytestmark = pytest.mark.unit


def test_outside_a_terminal_there_is_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch, capsys):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress("activations") as told:
        for seconds, done in ((0, 1000), (10, 1500), (31, 4100), (45, 5000), (62, 7200)):
            now[0] = 100.0 + seconds
            told(done, 10_000)
    assert capsys.readouterr().err.splitlines() == [
        "activations: 4,100 of 10,000 images, 100 images/s, 59 s left",
        "activations: 7,200 of 10,000 images, 100 images/s, 28 s left",
    ]


def test_short_work_says_nothing(capsys):
    with console.progress("ingest") as told:
        told(1, 2)
        told(2, 2)
    assert capsys.readouterr().err == ""
