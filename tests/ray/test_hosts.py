"""The hosts that other tests are run on: apart, but for one folder and one cluster; lost as a whole."""

from __future__ import annotations

import signal
import subprocess

import pytest
from hosts import Hosts

pytestmark = [pytest.mark.ray, pytest.mark.long]

TASKS = """
import ray, socket
ray.init(logging_level="ERROR", log_to_driver=False)

@ray.remote(scheduling_strategy="SPREAD")
def node():
    return ray.util.get_node_ip_address()

print(*sorted(set(ray.get([node.remote() for _ in range(8)]))))
"""

VISIBLE = """
import ray
from ham_ray.cluster import alive_nodes, check_visible
ray.init(logging_level="ERROR", log_to_driver=False)
print(len(alive_nodes()))
check_visible("{}", "--data")
print(len(alive_nodes()))
"""


def test_tasks_run_on_both_hosts(two_hosts: Hosts):
    done = two_hosts[1].python(TASKS, 60)
    assert done.stdout.split() == ["10.88.0.1", "10.88.0.2"], done.stderr


def test_only_the_shared_folder_is_seen_by_both(two_hosts: Hosts):
    head, other = two_hosts
    for name in ("/tmp/mark", "/dev/shm/mark", f"{two_hosts.shared}/mark"):
        assert head.run(["touch", name], 10).returncode == 0
    seen = [
        name
        for name in ("/tmp/mark", "/dev/shm/mark", f"{two_hosts.shared}/mark")
        if other.run(["test", "-e", name], 10).returncode == 0
    ]
    assert seen == [f"{two_hosts.shared}/mark"]


def test_processes_of_a_host_are_its_own(two_hosts: Hosts):
    head, other = two_hosts
    assert sum("gcs_server" in process.name() for process in head.processes()) == 1
    assert sum("gcs_server" in process.name() for process in other.processes()) == 0
    assert sum("raylet" in process.name() for process in other.processes()) == 1
    assert "gcs_server" not in other.run(["ps", "-A"], 10).stdout


def test_signals_reach_the_process_itself(two_hosts: Hosts):
    code = "trap 'exit 5' INT; echo ready; while :; do sleep 0.05; done"
    process = two_hosts[0].start(["bash", "-c", code], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 5
    process = two_hosts[0].start(["sleep", "100"])
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired):
        two_hosts[0].run(["sleep", "100"], 0.2)
    assert not any(process.name() == "sleep" for process in two_hosts[0].processes())


def test_a_host_that_is_lost_while_it_is_asked_counts_no_more_and_can_join_again(make_hosts):
    made = make_hosts(cpus=(1, 1))
    lost = made[1].processes()
    made[1].kill()
    assert len(lost) > 3 and not any(process.is_running() for process in lost)
    done = made[0].python(VISIBLE.format(made.shared), 120)  # Ray has not noticed yet
    nodes = done.stdout.split()
    assert [nodes[0], nodes[-1]] == ["2", "1"] and done.returncode == 0, done.stdout + done.stderr
    made[1].boot()
    made[1].start_ray()
    made.wait_for_nodes()
