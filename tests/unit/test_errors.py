"""Errors on one line: what Ray wraps is taken out, files and reasons are named."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError
from ray.train import ControllerError, WorkerGroupError

from ham_ray.errors import UserError, cause, in_words, some

pytestmark = pytest.mark.unit
GONE = FileNotFoundError(2, "No such file or directory", "/data/images-00000.parquet")


def in_a_task(error: Exception) -> Exception:
    """As `ray.get` raises what a task raised on another node."""
    task = RayTaskError(
        "read", "Traceback (most recent call last):\n  …\nSome: error", error, "ray::read", 1, "10.0.0.2"
    )
    return pickle.loads(pickle.dumps(task)).as_instanceof_cause()


def test_a_users_mistake_in_a_task_stays_one():
    found = cause(in_a_task(UserError("--data x: damaged")))
    assert type(found) is UserError and in_words(in_a_task(UserError("--data x: damaged"))) == "--data x: damaged"


@pytest.mark.parametrize(
    "wrapped",
    [
        in_a_task(GONE),
        ControllerError(in_a_task(GONE)),
        WorkerGroupError("many\nlines", {1: UserError("later"), 0: in_a_task(GONE)}),
    ],
    ids=["task", "controller", "worker"],
)
def test_a_file_is_named_however_deep_its_error_lies(wrapped: Exception):
    assert in_words(wrapped) == "No such file or directory: /data/images-00000.parquet"


def test_advice_in_place_of_a_file_is_left_out():
    assert (
        in_words(FileNotFoundError(2, "Failed to open '/x'", "Failed to read after 1/10\nTo change …"))
        == "Failed to open '/x'"
    )


def test_an_error_without_a_file_names_none():
    assert in_words(OSError("Failed to open local file '/x'\nmore")) == "Failed to open local file '/x'"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OutOfMemoryError("Task was killed due to the node running low on memory.\nadvice"),
            "its node ran out of memory",
        ),
        (NodeDiedError("the node 10.0.0.2 is dead"), "a node is gone (the node 10.0.0.2 is dead)"),
        (ActorDiedError(), "a process died (The actor died unexpectedly before finishing this task.)"),
        (ValueError("first\nsecond"), "ValueError: first"),
    ],
)
def test_ends_of_processes_are_told_in_one_line(error: Exception, told: str):
    assert told in in_words(error) and "\n" not in in_words(error) and "advice" not in in_words(error)


def test_many_or_long_names_are_cut():
    assert some(["a", "b"]) == "a, b"
    assert some(["a", "b", "c", "d"], 3) == "a, b, c, …"
    assert len(some(["x" * 5000] * 100)) < 700
