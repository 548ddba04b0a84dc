"""The resource arithmetic, and cluster.yaml against Ray's own schema and loader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from ham_ray import cluster as module
from ham_ray.cluster import Node, Resources, WorkerRange, plan, process_shares, slots, spread, worker_range
from ham_ray.errors import UserError

pytestmark = pytest.mark.unit
CLUSTER = Path(__file__).parents[2] / "cluster.yaml"


def test_one_worker_leaves_a_cpu_to_ray_data():
    assert plan(1, [2.0]).cpus_per_worker == 1


def test_two_workers_share_what_is_left_of_two_cpus():
    assert plan(2, [2.0]).cpus_per_worker == 0.5


def test_a_share_is_no_larger_than_a_node():
    # (12 - 1) / 2 = 5.5 CPUs would fit on no node: Ray would wait for such a node forever
    assert plan(2, [4.0, 4.0, 4.0]).cpus_per_worker == 4


def test_three_workers_on_two_nodes():
    resources = plan(3, [4.0, 8.0])
    assert resources.cpus_per_worker == 3  # one on the first node, two on the second, and (12 - 1) / 3 > 3


def test_the_reserve_is_whole_on_one_node():
    # 2 × 1.5 leaves 1 CPU in all, but half of one on each node, where no decoding task fits
    with pytest.raises(UserError, match="do not fit"):
        plan(2, [2.0, 2.0], cpus_per_worker=1.5)
    assert plan(2, [2.0, 2.0]).cpus_per_worker == 1


def test_a_share_of_zero_is_not_an_automatic_one():
    with pytest.raises(UserError, match="do not fit"):
        plan(1, [2.0], cpus_per_worker=0.0)


def test_too_many_workers_are_refused_with_the_arithmetic():
    with pytest.raises(UserError, match=r"40 worker\(s\) × 0\.1 CPU do not fit: 1 node\(s\) with 2 CPUs, 1 kept"):
        plan(40, [2.0])


def test_a_share_asked_for_that_starves_ray_data_is_refused():
    with pytest.raises(UserError, match="do not fit"):
        plan(2, [2.0], cpus_per_worker=1.0)


def test_no_worker_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        plan(0, [2.0])


@pytest.mark.parametrize(("gpus", "used"), [(0, False), (1, False), (2, True)])
def test_gpus_are_used_where_every_worker_gets_one(gpus: int, used: bool):
    assert plan(2, [8.0], gpus).use_gpu is used


@pytest.mark.parametrize(
    ("processes", "cpus", "share"),
    [(1, [2], 1), (2, [2], 1), (1, [32], 31), (1, [4] * 8, 4), (1, [2, 2], 2), (2, [4, 4, 4], 4), (3, [2], 0.66)],
)
def test_a_process_asks_for_what_one_node_has(processes: int, cpus: list[float], share: float):
    assert process_shares(processes, [{"CPU": count} for count in cpus]) == (share, 0)


@pytest.mark.parametrize(("processes", "share"), [(1, 1), (2, 1), (3, 0.5)])
def test_a_process_asks_for_no_more_than_one_gpu_and_for_cpus_beside_it(processes: int, share: float):
    nodes = [{"CPU": 32.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]
    cpus, gpus = process_shares(processes, nodes)
    assert gpus == share and cpus <= 4


@pytest.mark.parametrize(
    ("workers", "share", "cpus", "counts"),
    [
        (2, 1, [2, 2], [1, 1]),  # Ray's default would put both on one
        (3, 1, [4, 2], [2, 1]),
        (3, 2, [2, 4], [1, 2]),
        (2, 3, [2, 8], [0, 2]),
        (3, 2, [2, 2], []),  # a cluster that is to grow
    ],
)
def test_workers_are_spread_over_the_nodes(workers: int, share: float, cpus: list, counts: list):
    nodes = [Node(f"n{number}", f"n{number}", count, 0) for number, count in enumerate(cpus)]
    assert [*spread(Resources(workers, share, False, ""), nodes).values()] == counts


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [
        ([(2, 0)], [("n0", 1.0, 0)]),
        ([(1, 0)], [("n0", 0.5, 0)]),  # half is left to others
        ([(2, 0), (1, 0), (0, 0)], [("n0", 1.0, 0), ("n1", 0.5, 0)]),  # none where there is no CPU
        ([(8, 0), (4, 2), (1, 1)], [("n1", 1.0, 1), ("n1", 1.0, 1), ("n2", 0.5, 1)]),  # one a GPU, where there are any
        ([(0, 0)], []),
    ],
)
def test_an_actor_asks_for_at_most_half_of_its_node(nodes: list, asked: list):
    found = slots([Node(f"n{number}", "address", cpus, gpus) for number, (cpus, gpus) in enumerate(nodes)])
    assert [(slot.node.id, slot.cpus, slot.gpus) for slot in found] == asked


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load(CLUSTER.read_text())


def test_cluster_yaml_is_what_ray_up_takes(cluster: dict):
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(cluster, json.loads(schema.read_text()))
    validate_config(prepare_config(cluster))


def test_cluster_yaml_asks_for_the_token_on_every_node(cluster: dict):
    starts = [c for key in ("head", "worker") for c in cluster[f"{key}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all(c.startswith("RAY_AUTH_MODE=token ") for c in starts)
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_cluster_yaml_opens_nothing_to_the_world(cluster: dict):
    # Without SecurityGroupIds in every node type Ray makes a group that opens SSH to 0.0.0.0/0.
    assert all(node["node_config"]["SecurityGroupIds"] for node in cluster["available_node_types"].values())
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert "0.0.0.0" not in CLUSTER.read_text()


def test_cluster_yaml_runs_the_ray_that_is_tested(cluster: dict):
    assert f":{ray.__version__}-py3" in cluster["docker"]["image"]


def test_a_growing_cluster_is_waited_for():
    assert plan(8, [2.0], cpus_per_worker=4.0, grows=True).cpus_per_worker == 4


def test_files_that_a_node_does_not_see_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_nodes", lambda: ["a", "b", "c"])
    monkeypatch.setattr(module, "_blind", lambda path: 2 if path.startswith("/local") else 0)
    module.check_visible("/shared/pictures", "--images")
    module.check_visible("s3://bucket/images", "--images")
    with pytest.raises(UserError, match="--images /local/pictures: 2 of 3 nodes do not see it"):
        module.check_visible("/local/pictures", "--images")


def test_a_temporary_folder_too_long_for_rays_sockets_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch/" + 60 * "x")  # 69 bytes; a session and its socket take 68
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))
    refused = pytest.raises(UserError, match=r"/scratch/x+: 30 bytes too long a path for Ray's sockets; set RAY_TMPDIR")
    with refused, module.connected():
        pass
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    module.check_temporary()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (None, "Ray did not start: The current node timed out during startup; look for free memory"),
        ("head:6379", "cannot connect to Ray at head:6379: The current node timed out during startup; compare"),
    ],
)
def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str | None, told: str):
    def init(**options) -> None:
        raise Exception("\nThe current node timed out during startup\nthe last lines of gcs_server.out:\n[2026] E …")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as raised, module.connected():
        pass
    assert str(raised.value).startswith(told) and "\n" not in str(raised.value)


@pytest.mark.job
def test_a_head_that_does_not_answer_ends_the_job_with_one_line(tmp_path: Path):
    """Ray alone tries for a quarter of an hour. Its own limits are shortened here, from 41 s in all to 3."""
    short = {"RAY_py_gcs_connect_timeout_s": "1", "RAY_gcs_rpc_server_connect_timeout_s": "1"}
    code = "from ham_ray.cluster import connected\nwith connected(): pass"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **short, "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "ham_ray.errors.UserError: cannot connect to Ray at 127.0.0.1:1: " in done.stderr


@pytest.mark.job
def test_workers_on_other_nodes_take_no_keras_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"backend": "jax", "image_data_format": "channels_first"}')
    code = "import keras; print(keras.config.backend(), keras.config.image_data_format())"
    own = {**os.environ, "HOME": str(tmp_path), **module._joining()["runtime_env"]["env_vars"]}
    done = subprocess.run([sys.executable, "-c", code], env=own, check=True, capture_output=True, text=True)
    assert done.stdout == "tensorflow channels_last\n"


@pytest.mark.parametrize(("text", "least", "most"), [("1", 1, 1), ("3-8", 3, 8), (" 2 - 4 ", 2, 4), (5, 5, 5)])
def test_ranges_of_workers(text: str, least: int, most: int):
    read = worker_range(text)
    assert (read.least, read.most, read.elastic) == (least, most, least < most)


@pytest.mark.parametrize("text", ["", "0", "-1", "1-", "-", "4-2", "a-b", "1-2-3", "1.5", "1-2000"])
def test_what_is_no_range_of_workers(text: str):
    with pytest.raises(UserError, match=r"as in 1-4"):
        worker_range(text)


def test_workers_are_as_many_as_divide_the_batch():
    assert WorkerRange(1, 6).counts(32) == [4, 2, 1]
    assert WorkerRange(3, 3).counts(32) == []
