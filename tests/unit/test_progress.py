"""Durations, steps and the time left of a command."""

from __future__ import annotations

import pytest

from ham_ray.progress import TimeLeft, Work, duration, step

pytestmark = pytest.mark.unit


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7100, "118 min"), (7200, "2.0 h")]
)
def test_a_duration_is_in_seconds_below_two_minutes(seconds: float, words: str):
    assert duration(seconds) == words


def test_a_step_says_that_it_starts_and_how_long_it_took(capsys):
    with step("report", "3 families"):
        assert capsys.readouterr().out == "report (3 families) …\n"
    assert capsys.readouterr().out == "report: 0 s\n"


def test_the_time_left_is_of_all_families_and_says_which_are_not_timed():
    clock = Clock()
    left = TimeLeft({"cnn": Work("cnn", 3), "resnet": Work("resnet", 2)}, clock=clock)
    left.start("cnn")
    clock.now = 10
    left.advance("cnn", 2)
    assert left.words() == "20 s left and resnet, not timed yet"
    left.finish("cnn")  # stopped early
    clock.now = 15
    left.start("resnet")
    clock.now = 115
    left.advance("resnet", 1)
    assert left.words() == "at most 100 s left"


def test_folds_of_one_family_share_their_pace_and_run_at_once():
    clock = Clock()
    left = TimeLeft({f"cnn-{fold}": Work("cnn", 4) for fold in range(5)}, at_once=2, clock=clock)
    for fold in (0, 1):
        left.start(f"cnn-{fold}")
    clock.now = 6
    left.advance("cnn-0", 3)
    clock.now = 10
    left.advance("cnn-1", 3)
    assert left.seconds() == (3 + 3 + 4 + 4 + 4) * 8 / 2
    assert left.words() == "at most 72 s left"


def test_a_resumed_training_counts_only_the_epochs_of_this_start():
    clock = Clock()
    left = TimeLeft({"cnn": Work("cnn", 40)}, clock=clock)
    left.start("cnn")
    clock.now = 5
    left.advance("cnn", 40 - 31)  # epoch 31 is the first that is trained now
    assert left.seconds() == 45
