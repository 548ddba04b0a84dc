"""Workers that are forked have ids and a random state of their own."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.ray


def test_forked_workers_have_loaded_tensorflow_and_draw_other_ids(cluster: str):
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        def drawn(self) -> tuple[bool, str, int]:
            import random
            import sys

            return "tensorflow" in sys.modules, ray.ObjectRef.from_random().hex(), random.getrandbits(64)

    loaded, ids, numbers = zip(*ray.get([Worker.remote().drawn.remote() for _ in range(4)]), strict=True)
    assert all(loaded) and len({*ids}) == len({*numbers}) == 4
