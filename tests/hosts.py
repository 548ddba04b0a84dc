"""Several hosts on one machine, for tests of clusters and of their loss.

A host is a set of Linux namespaces: network, processes, /tmp and /dev/shm are its own; the rest of the file system is
the machine's, and of /tmp it sees the shared folder alone. All hosts hang on one bridge that is in a namespace of its
own as well, so no name or address is visible outside, and several sets can run at once. A host lives as long as its
init process, which ends with the process that made it, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

PORT = 6379
ROOT = Path(__file__).parents[1]
_OBJECT_STORE = 200_000_000  # bytes of each node
_START_SECONDS = 120.0
_QUICK_LOSS = {  # a lost node is noticed in about 10 s instead of 30
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
# A new /tmp is put together at /mnt from what it is to show, then laid over the old one. bash reaps orphans, and `read`
# ends when the other end of its pipe does.
_INIT = """
set -e
ip link set lo up
mount -t tmpfs tmpfs /mnt
chmod 1777 /mnt
for kept in "$@"; do mkdir -p "/mnt/${kept#/tmp/}"; mount --bind "$kept" "/mnt/${kept#/tmp/}"; done
mount --rbind /mnt /tmp
mount -t tmpfs -o size=2g tmpfs /dev/shm
echo ready
read || true
"""
_SWITCH = "set -e; ip link add bridge type bridge; ip link set bridge up; echo ready; read || true"
_TRIAL = "mount -t tmpfs tmpfs /mnt && ip link add one type veth peer name two && ip link add three type bridge"
_WAIT = """
import ray, sys, time
ray.init(logging_level="ERROR", log_to_driver=False)
end = time.monotonic() + {timeout}
while (alive := sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])) != {wanted}:
    if time.monotonic() > end:
        sys.exit(f"alive: {{alive}}")
    time.sleep(0.2)
"""


def lacking() -> str | None:
    """Return what keeps hosts from being made here, or None."""
    if sys.platform != "linux":
        return f"hosts are made of Linux namespaces; this is {sys.platform}"
    if missing := [tool for tool in ("unshare", "nsenter", "ip", "mount", "bash") if shutil.which(tool) is None]:
        return f"hosts need {', '.join(missing)} (util-linux, iproute2)"
    tried = subprocess.run([*NAMESPACES, "bash", "-c", _TRIAL], capture_output=True, text=True, timeout=60)
    if tried.returncode:
        return f"hosts need root with the right to make namespaces, mounts and veth pairs: {tried.stderr.strip()}"
    return None


class Process(subprocess.Popen[str]):
    """A process of a host. Signals go to it, not to the nsenter that waits for it outside; output is text."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the process within the host."""
        while self.poll() is None and not (inner := psutil.Process(self.pid).children()):
            time.sleep(0.01)  # it is not forked yet
        if self.returncode is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                inner[0].send_signal(sig)


class Host:
    """One host, running from `boot` to `kill`, with Ray from `start_ray` on."""

    def __init__(self, number: int, cpus: int, switch: int, kept: list[str], environment: dict[str, str]) -> None:
        self.address = f"10.88.0.{number}"
        self.cpus = cpus
        self._number, self._switch, self._kept, self._environment = number, switch, kept, environment
        self._init: subprocess.Popen[str] | None = None
        self._started: list[Process] = []

    @property
    def running(self) -> bool:
        """Whether it is."""
        return self._init is not None and self._init.poll() is None

    @property
    def pid(self) -> int:
        """The init process, as seen from outside."""
        if self._init is None or self._init.poll() is not None:
            raise RuntimeError(f"host {self.address} is not running")
        return psutil.Process(self._init.pid).children()[0].pid

    def boot(self) -> None:
        """Start it, without Ray; again after `kill`, with an empty /tmp."""
        self._init = _held([*NAMESPACES, "bash", "-c", _INIT, "init", *self._kept])
        name = f"host{self._number}-{secrets.token_hex(2)}"  # the bridge may still hold the port of a killed one
        link = f"ip link add {name} type veth peer name eth0 netns {self.pid}"
        _ok(["nsenter", "-t", str(self._switch), "-n", "bash", "-c",
             f"{link} && ip link set {name} master bridge up"])  # fmt: skip
        self.run(["ip", "address", "add", f"{self.address}/24", "dev", "eth0"], 10).check_returncode()
        self.run(["ip", "link", "set", "eth0", "up"], 10).check_returncode()

    def start_ray(self, head: bool = False, **options: str) -> None:
        """Start Ray's processes, as head of a new cluster or joining that of the first host."""
        role = ["--head", f"--port={PORT}", "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
        command = ["-m", "ray.scripts.scripts", "start", f"--node-ip-address={self.address}", f"--num-cpus={self.cpus}"]
        command += [f"--object-store-memory={_OBJECT_STORE}", *(role if head else [f"--address=10.88.0.1:{PORT}"])]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        done = self.run([sys.executable, *command], _START_SECONDS, environment={"RAY_ADDRESS": ""})
        if done.returncode:
            raise RuntimeError(f"Ray does not start on {self.address}:\n{done.stdout}{done.stderr}")

    def start(
        self, command: Sequence[str | Path], environment: dict[str, str] | None = None, **options: Any
    ) -> Process:
        """Start a command on the host, by default in the repository's root; RAY_ADDRESS names the cluster."""
        options = {"text": True, "stdin": subprocess.DEVNULL, "cwd": ROOT, **options}
        inside = ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", f"--wd={options.pop('cwd')}"]
        process = Process([*inside, *map(str, command)], env={**self._environment, **(environment or {})}, **options)
        self._started.append(process)
        return process

    def run(
        self, command: Sequence[str | Path], timeout: float, environment: dict[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host and return its status and output.

        Raises:
            subprocess.TimeoutExpired: it took more than `timeout` seconds, and was killed; with its output so far.
        """
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = self.start(command, environment, **options)
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:
            with process:  # which closes its pipes and waits for it
                process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, errors)

    def python(self, code: str, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run Python code on the host, in the environment of this process."""
        return self.run([sys.executable, "-c", code], timeout, **options)

    def processes(self) -> list[psutil.Process]:
        """All its processes, init included, as seen from outside."""
        space = Path(f"/proc/{self.pid}/ns/pid").readlink()
        inside = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == space:
                    inside.append(process)
        return inside

    def kill(self) -> None:
        """Lose it: SIGKILL to its init, with which the kernel ends all its processes, its network and its /tmp."""
        if self._init is not None:
            with self._init:
                if self.running:
                    os.kill(self.pid, 9)

    def close(self) -> None:
        """Lose it, and close the pipes of all that was started on it: until then what they hold can be read."""
        self.kill()
        for process in self._started:
            with process:
                pass


class Hosts(list[Host]):
    """The hosts of a cluster, the head first, and the folder that all of them see."""

    def __init__(self, shared: Path) -> None:
        super().__init__()
        self.shared = shared

    def wait_for_nodes(self, timeout: float = 60.0) -> None:
        """Wait until the nodes that Ray takes for alive are those of the running hosts.

        Raises:
            TimeoutError: they are not in `timeout` seconds.
        """
        wanted = sorted(host.address for host in self if host.running)
        done = self[0].python(_WAIT.format(wanted=wanted, timeout=timeout), timeout + 60)
        if done.returncode:
            raise TimeoutError(f"after {timeout:g} s not the nodes {wanted} alive: {done.stdout}{done.stderr}")


@contextlib.contextmanager
def hosts(
    shared: Path, cpus: Sequence[int] = (2, 2), ray: bool = True, environment: dict[str, str] | None = None
) -> Iterator[Hosts]:
    """Boot one host for each number of `cpus`; with `ray` they form a cluster in token mode.

    `shared` is a folder that all see under its own path; `environment` is added to that of their processes. All
    processes that a host started end with it, at the latest on leaving.
    """
    variables = {name: value for name, value in os.environ.items() if name not in ("TMPDIR", "RAY_TMPDIR")}
    variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    variables |= {"RAY_ADDRESS": f"10.88.0.1:{PORT}", **_QUICK_LOSS, **(environment or {})}
    kept = [str(path) for path in (shared.resolve(), ROOT, Path(sys.prefix)) if path.is_relative_to("/tmp")]
    switch = _held(["unshare", "--net", "--fork", "--kill-child", "bash", "-c", _SWITCH])
    made = Hosts(shared)
    try:
        inside = psutil.Process(switch.pid).children()[0].pid
        made.extend(Host(place + 1, count, inside, kept, variables) for place, count in enumerate(cpus))
        for host in made:
            host.boot()
        if ray:
            for host in made:
                host.start_ray(head=host is made[0])
            made.wait_for_nodes()
        yield made
    finally:
        for host in made:
            host.close()
        with switch:
            switch.kill()


def _held(command: list[str]) -> subprocess.Popen[str]:
    """Start a process that lives as long as this one, and wait until it says that it is ready."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if process.stdout is None or (said := process.stdout.readline()) != "ready\n":
        with process:
            process.kill()
        raise RuntimeError(f"{' '.join(command[:6])} …: {said}")
    return process


def _ok(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
