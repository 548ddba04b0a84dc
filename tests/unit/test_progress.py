"""Durations, steps and the time left of a command."""

from __future__ import annotations

import pytest

from ham_ray.progress import TimeLeft, Work, duration, step

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7100, "118 min"), (7200, "2.0 h")]
)
def test_a_duration_is_in_seconds_below_two_minutes(seconds: float, words: str):
    assert duration(seconds) == words


def test_a_step_says_that_it_starts_and_how_long_it_took(capsys):
    with step("report", "3 families"):
        assert capsys.readouterr().out == "report (3 families) …\n"
    assert capsys.readouterr().out == "report: 0 s\n"


def test_the_time_left_is_of_all_families_and_names_those_not_timed():
    left = TimeLeft({"cnn": Work("cnn", 4), "resnet": Work("resnet", 2)}, then="report")
    assert left.advance("cnn", 3, 14.0) == "about 42 s left, then resnet (not timed yet), then report"
    assert left.advance("cnn", 2, 6.0) == "about 20 s left, then resnet (not timed yet), then report"
    left.finish("cnn")  # stopped early
    assert left.words() == "still to come: resnet (not timed yet), then report"
    assert left.advance("resnet", 1, 100.0) == "about 100 s left, then report"
    assert left.advance("resnet", 0, 100.0) == "still to come: report"


def test_folds_of_one_family_share_their_pace_and_run_at_once():
    left = TimeLeft({f"cnn-{fold}": Work("cnn", 4) for fold in range(5)}, at_once=2)
    left.advance("cnn-0", 3, 6.0)
    assert left.advance("cnn-1", 3, 10.0) == "about 72 s left"  # (3 + 3 + 4 + 4 + 4) epochs of 8 s, two at a time
    for fold in range(4):
        left.finish(f"cnn-{fold}")
    assert left.words() == "about 32 s left"  # one training alone is not shared
    left.finish("cnn-4")
    assert left.words() == "all done"
