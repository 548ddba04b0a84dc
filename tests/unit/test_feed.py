"""Batches that are made ahead of their use."""

import threading

import pytest

from ham_ray.training import feed

pytestmark = pytest.mark.unit


def test_the_next_batch_is_made_while_one_is_used():
    made = threading.Semaphore(0)

    def batches():
        for number in range(3):
            made.release()
            yield number

    found = feed._ahead(batches())
    assert next(found) == 0
    assert made.acquire(timeout=5) and made.acquire(timeout=5), "the second was not begun"
    assert list(found) == [1, 2]


def test_an_error_reaches_who_uses_the_batches():
    def batches():
        yield 1
        raise OSError("disk")

    found = feed._ahead(batches())
    assert next(found) == 1
    with pytest.raises(OSError, match="disk"):
        next(found)


def test_they_can_be_left_early():
    found = feed._ahead(iter(range(1000)))
    assert next(found) == 0
    found.close()
