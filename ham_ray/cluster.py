"""Connecting to Ray, and the resource arithmetic that comes before anything starts."""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ham_ray import storage
from ham_ray.errors import UserError, shown
from ham_ray.hardware import cores

_LONGEST_SOCKET = 107  # bytes of a path in the file system (AF_UNIX)
_LEAST = 0.1  # of a CPU: below it Ray's own bookkeeping outweighs the work


@dataclass(frozen=True)
class Resources:
    """What each worker asks of Ray, with the reason in words."""

    workers: int
    cpus_per_worker: float
    use_gpu: bool
    reason: str


@dataclass(frozen=True)
class WorkerRange:
    """How many workers a training may have, from the fewest to the most; the same number: it is not elastic.

    cpus_each: instead of an even share of the nodes.
    """

    least: int
    most: int
    cpus_each: float | None = None

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.least < self.most

    def counts(self, batch_size: int) -> list[int]:
        """List the numbers of workers that divide the batch, the largest first."""
        return [count for count in range(self.most, self.least - 1, -1) if batch_size % count == 0]


def worker_range(text: str, cpus_each: float | None = None) -> WorkerRange:
    """Read `4`, or `1-4` for any number from 1 to 4.

    Raises:
        UserError: the text is neither.
    """
    match = re.fullmatch(r"\s*([0-9]{1,4})\s*(?:-\s*([0-9]{1,4})\s*)?", str(text))
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most <= 1000:
        raise UserError(f"--workers {shown(text)}: from 1 to 1000, or the fewest and the most, as in 1-4")
    return WorkerRange(least, most, cpus_each)


@dataclass(frozen=True)
class Node:
    """A node of the cluster, with what it has in all."""

    id: str
    address: str
    cpus: float
    gpus: int

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class Slot:
    """Room for one actor that holds a network: a node, or a GPU of it; with what the actor asks for."""

    node: Node
    number: int
    cpus: float
    gpus: int
    in_flight: int  # chunks at once: some are decoded while one is computed


_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's start-up notices; its errors come as exceptions
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line twice
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 by default: how long a training that has ended is not noticed
}
_KERAS = {  # of workers on other nodes: whatever a keras.json there asks for; there is none below a device
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": "/dev/null",
}


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray while the block runs.

    The cluster is that of RAY_ADDRESS (set by `ray job submit`), else one of this machine, which is started and ended.

    Raises:
        UserError: Ray does not start, or RAY_ADDRESS names a cluster that does not answer.
    """
    address = os.environ.get("RAY_ADDRESS")
    print(f"connecting to Ray at {address} (up to a minute) …" if address else "starting Ray …", flush=True)
    import ray

    options = _joining() if address else _starting()
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # Ray raises bare ones too, whose further lines are of a log
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(_remedy(address, reason)) from error
    configure_data()
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # the jobs say themselves what happens
    ray._private.worker.print_to_stdstream = lambda *arguments, **more: None  # "(raylet) A worker died …", of each
    try:
        yield
    finally:
        ray.shutdown()


def _remedy(address: str | None, reason: str) -> str:
    """Write the message for Ray not starting, or not letting this process join, for this reason; with the remedy."""
    if address:
        return (
            f"cannot connect to Ray at {address}: {reason}; compare RAY_ADDRESS with `ray status` on the cluster, and "
            "set RAY_AUTH_MODE=token where the cluster has a token"
        )
    return (
        f"Ray did not start: {reason}; look for free memory, free space in {_temporary()} and other Rays on this "
        f"machine, then start the same command again; Ray's own logs: {_temporary()}/ray/session_latest/logs"
    )


def _temporary() -> str:
    """Return the folder in which Ray keeps a session's sockets and logs."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def check_temporary() -> None:
    """Refuse a temporary folder whose path is too long for Ray's sockets.

    Raises:
        UserError: with the remedy.
    """
    session = "session_2026-01-31_23-59-59_999999_4194304"  # its time and the largest number of a process
    length = len(os.fsencode(f"{_temporary()}/ray/{session}/sockets/plasma_store"))
    if length > _LONGEST_SOCKET:
        raise UserError(
            f"{_temporary()}: {length - _LONGEST_SOCKET} bytes too long a path for Ray's sockets; set RAY_TMPDIR to a "
            "shorter folder, for example RAY_TMPDIR=/tmp (with `ray start`: --temp-dir)"
        )


def in_submitted_job() -> bool:
    """Say whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def configure_data() -> None:
    """Silence Ray Data's progress bars and log lines, for jobs print their own, and choose its quicker reader."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # else what a task raised is lost but for its text
    context.use_datasource_v2 = False  # its listing waits a second for each dataset (Ray 2.60: 1.1 s against 0.1 s)


def has_gpus() -> bool:
    """Say whether the connected cluster has a GPU."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def _starting() -> dict[str, Any]:
    check_temporary()
    os.environ.update({key: value for key, value in _ENVIRONMENT.items() if key not in os.environ})
    # With the dashboard: without it Ray Train cannot watch its controller, and says so every second.
    few = {"num_cpus": 2} if cores() < 2 else {}  # else Ray's own count, which knows containers
    return {"include_dashboard": True, "dashboard_host": "127.0.0.1", **few}


def _joining() -> dict[str, Any]:
    # Ray would try a head that does not answer twenty times, 40 s each.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    environment: dict[str, Any] = {"env_vars": _ENVIRONMENT | _KERAS}
    if not in_submitted_job():  # outside a submitted job the cluster lacks this code
        environment["py_modules"] = [str(Path(__file__).parent)]
    return {"runtime_env": environment}


def check_shared(folder: str) -> None:
    """Refuse a local folder that not all nodes of the cluster share: checkpoints and models would be scattered.

    Raises:
        UserError: a node does not see a file written here.
    """
    if len(_nodes()) < 2 or storage.is_remote(folder):
        return
    marker = storage.join(folder, f".shared-{uuid.uuid4().hex[:8]}")
    storage.write_bytes(marker, b"")
    blind = _blind(marker)
    storage.remove(marker)
    if blind:
        raise UserError(
            f"--out {folder}: {blind} of {len(_nodes())} nodes do not see it; give a shared folder or s3://…"
        )


def check_visible(path: str, option: str) -> None:
    """Refuse files that not all nodes of the cluster see: what a blind node reads would count as unreadable.

    Raises:
        UserError: a node does not see `path`, which the user gave as `option`.
    """
    if len(_nodes()) > 1 and not storage.is_remote(path) and (blind := _blind(path)):
        raise UserError(
            f"{option} {path}: {blind} of {len(_nodes())} nodes do not see it; put it on a path that all nodes share"
        )


def alive_nodes() -> list[Node]:
    """List the nodes of the connected cluster that are there now, by address."""
    import ray

    result = [node for node in ray.nodes() if node["Alive"]]
    resources = [node["Resources"] for node in result]
    nodes = [
        Node(node["NodeID"], node["NodeManagerAddress"], float(its.get("CPU", 0)), int(its.get("GPU", 0)))
        for node, its in zip(result, resources, strict=True)
    ]
    return sorted(nodes, key=lambda node: (node.address, node.id))


def this_node() -> Any:
    """Return Ray's scheduling strategy for an actor that is to live and die with the node of this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def free_cpus() -> float:
    """Count the CPUs of the connected cluster that nobody holds now."""
    import ray

    return float(ray.available_resources().get("CPU", 0))


def roomiest_cpus() -> float:
    """Return the CPUs that nobody holds on the node that has most of them: a task is not split over nodes."""
    from ray._private.state import available_resources_per_node  # a developer's API; ray.available_resources adds up

    return max((float(node.get("CPU", 0)) for node in available_resources_per_node().values()), default=0.0)


def slots(nodes: list[Node]) -> list[Slot]:
    """List where actors that hold a network fit: one a GPU, or one a node without GPUs, for each takes all cores.

    Actors ask for a CPU, or for half of what their node has for each where that is less: the rest is kept for others.
    """
    gpus = any(node.gpus for node in nodes)
    result = []
    for node in nodes:
        count = node.gpus if gpus else int(node.cpus > 0)
        half = node.cpus / 2 / max(1, count)
        in_flight = min(8, max(2, int(half)))
        result += [Slot(node, number, round(min(1.0, half), 2), int(gpus), in_flight) for number in range(count)]
    return result


def _nodes() -> list[str]:
    return [node.id for node in alive_nodes()]


def _blind(path: str) -> int:
    """Count the nodes that do not see a local path. A node that dies meanwhile does not count."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(os.path.exists)
    asked = {
        node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(path)
        for node in _nodes()
    }
    blind = 0
    for node, answer in asked.items():
        try:
            blind += not ray.get(answer)
        except RayError:
            if node in _nodes():
                raise
    return blind


def cluster_resources(workers: int, cpus_per_worker: float | None = None, grows: bool = False) -> Resources:
    """Plan for the nodes of the connected cluster, see `plan`.

    Where there are several nodes, the reason says how many workers each is to have.
    """
    nodes = alive_nodes()
    result = plan(workers, [node.cpus for node in nodes], sum(node.gpus for node in nodes), cpus_per_worker, grows)
    counts = spread(result, nodes)
    if len(nodes) < 2 or not counts:
        return result
    each = ", ".join(f"{count} on {node}" for node, count in counts.items())
    return replace(result, reason=f"{result.reason}; spread: {each}")


def spread(resources: Resources, nodes: list[Node]) -> dict[Node, int]:
    """Count the workers that each node gets by Ray's strategy SPREAD; {} if they do not fit.

    Every node gets one, then a second where there is room.
    """
    counts = dict.fromkeys(nodes, 0)
    for _ in range(resources.workers):
        room = [
            node
            for node, count in counts.items()
            if (count + 1) * resources.cpus_per_worker <= node.cpus + 1e-9
            and (not resources.use_gpu or count < node.gpus)
        ]
        if not room:
            return {}
        counts[min(room, key=lambda node: (counts[node], counts[node] * resources.cpus_per_worker - node.cpus))] += 1
    return counts


def plan(
    workers: int, node_cpus: list[float], gpus: int = 0, cpus_per_worker: float | None = None, grows: bool = False
) -> Resources:
    """Share CPUs out to `workers` so that all fit on the nodes and Ray Data keeps some to decode with.

    Workers that hold every CPU while their data is lazy would wait for it forever, without a word. Where the cluster
    `grows`, its autoscaler is trusted to add what does not fit yet.

    Args:
        node_cpus: the CPUs of each node.
        gpus: the GPUs of all nodes together.
        cpus_per_worker: what the user asks for; None: 1 where the cluster `grows`, else as much as fits.

    Raises:
        UserError: the workers do not fit; with the arithmetic.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: at least 1")
    total = sum(node_cpus)
    reserve = _reserve(total)
    shape = f"{len(node_cpus)} node(s) with {total:g} CPUs, {reserve:g} kept for Ray Data"
    automatic = 1.0 if grows else _share(workers, node_cpus, reserve)
    share = automatic if cpus_per_worker is None else cpus_per_worker
    if share < _LEAST or not (grows or _fits(workers, share, node_cpus, reserve)):
        raise UserError(
            f"{workers} worker(s) × {max(share, _LEAST):g} CPU do not fit: {shape}; "
            f"fewer workers, a smaller --cpus-per-worker (at least {_LEAST}), or --wait-for-nodes on a growing cluster"
        )
    use_gpu = gpus >= workers
    device = f"1 of {gpus} GPUs each" if use_gpu else f"no GPU ({gpus} in the cluster for {workers} workers)"
    return Resources(workers, share, use_gpu, f"{workers} worker(s) × {share:g} CPU, {device}: {shape}")


def task_cpus() -> float:
    """Return the CPUs that a task of Ray Data asks for now: no more than are free together on one node, if any are."""
    free = int(roomiest_cpus() * 10) / 10
    return min(decoding_cpus(), free) if free >= _LEAST else decoding_cpus()


def decoding_cpus() -> float:
    """Return the CPUs that one of Ray Data's tasks asks for: no more than `plan` keeps for them."""
    return _reserve(sum(node.cpus for node in alive_nodes()))


def _reserve(total: float) -> float:
    """Return the CPUs kept for Ray Data of so many in all."""
    return 1.0 if total >= 2 else total / 2


def shares(processes: int) -> tuple[float, float]:
    """Compute the CPUs and GPUs for each of so many `processes` on the connected cluster; (0, 0): they do not fit."""
    import ray

    return process_shares(processes, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def process_shares(processes: int, nodes: list[dict[str, float]]) -> tuple[float, float]:
    """Compute the CPUs and GPUs for each of so many `processes` on nodes with these resources; see `shares`.

    The CPUs of a process are all on one node, and its share of a GPU is of one GPU. Where there are GPUs only their
    nodes count. One process alone leaves a CPU to others.
    """
    used = [node for node in nodes if node.get("GPU", 0) >= 1] or nodes
    cpus, gpus = [float(node.get("CPU", 0)) for node in used], int(sum(node.get("GPU", 0) for node in used))
    reserve = 1.0 if processes == 1 and sum(cpus) >= 2 else 0.0
    return _share(processes, cpus, reserve), _share(processes, [1.0] * gpus, 0.0) if gpus else 0.0


def _share(workers: int, node_cpus: list[float], reserve: float) -> float:
    """Return the largest share of a CPU with which all workers fit; 0 where they cannot."""
    candidates = [(sum(node_cpus) - reserve) / workers]
    candidates += [cpus / k for cpus in node_cpus for k in range(1, workers + 1)]
    rounded = {float(int(c)) if c >= 1 else int(c * 100) / 100 for c in candidates}
    return max((c for c in rounded if c >= _LEAST and _fits(workers, c, node_cpus, reserve)), default=0.0)


def _fits(workers: int, share: float, node_cpus: list[float], reserve: float) -> bool:
    """Say whether all workers fit while some node keeps the reserve whole: a task is not split over nodes."""
    for keeper in range(len(node_cpus)):
        left = [cpus - reserve * (node == keeper) for node, cpus in enumerate(node_cpus)]
        if min(left) >= 0 and sum(int(cpus / share + 1e-9) for cpus in left) >= workers:
            return True
    return False
