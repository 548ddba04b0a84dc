"""Where elastic workers ask whether to go on: none of them is ever an epoch ahead of the others."""

from __future__ import annotations

import pytest

from ham_ray.training import elastic

pytestmark = pytest.mark.unit


def test_all_workers_stop_after_the_same_epoch():
    end = elastic.EpochsEnd.__ray_metadata__.modified_class()
    assert [end.may_go_on(1), end.may_go_on(1)] == [True, True]
    assert end.may_go_on(2)  # the first of two workers
    end.stop()
    assert end.may_go_on(2), "the second one has to go on with the first"
    assert [end.may_go_on(3), end.may_go_on(3)] == [False, False]
