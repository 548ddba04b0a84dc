"""A PostgreSQL server of its own for a test: it can be stopped and started, and ends with the test."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosts import Host

_WAIT = "60"  # seconds for the server to start or stop


def lacking() -> str | None:
    """Return what keeps a server from being started here, or None."""
    if _tool("initdb") is None:
        return "no PostgreSQL server is installed (apt-get install postgresql)"
    if importlib.util.find_spec("psycopg") is None and importlib.util.find_spec("psycopg2") is None:
        return "no driver of PostgreSQL is installed (pip install 'ham_ray[postgres]')"
    return None


class Server:
    """A server with its files in a folder, on 127.0.0.1 or on a host of its network; from `start` to `stop`."""

    def __init__(self, folder: Path, host: Host | None = None) -> None:
        self._data, self._host = folder / "data", host
        address = host.address if host else "127.0.0.1"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://postgres@{address}:{self.port}/postgres"
        if os.geteuid() == 0:  # as which the server does not run
            shutil.chown(folder, "postgres")
        self._run("initdb", "--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        settings = f"port = {self.port}\nlisten_addresses = '{address}'\nunix_socket_directories = '{folder}'\n"
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(f"{settings}fsync = off\nmax_connections = 30\n")
        with (self._data / "pg_hba.conf").open("a") as file:
            file.write("host all all samenet trust\n")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._run("pg_ctl", "start", "--wait", f"--timeout={_WAIT}", f"--log={self._data}/log.txt")

    def stop(self) -> None:
        """Let it end all connections, and end."""
        self._run("pg_ctl", "stop", "--wait", f"--timeout={_WAIT}", "--mode=fast")

    def _run(self, tool: str, *arguments: str) -> None:
        as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*as_postgres, str(_tool(tool)), f"--pgdata={self._data}", *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": "/"}
        if self._host:
            done = self._host.run(command, 120, **pipes)
        else:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, text=True, **pipes)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}")


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Start a server; it and its files are gone after the block."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:  # pytest's own are closed to other users
        made = Server(Path(folder))
        made.start()
        try:
            yield made
        finally:
            with contextlib.suppress(RuntimeError):  # the test stopped it
                made.stop()


def _tool(name: str) -> Path | None:
    """Of the newest version: Debian keeps those of the server out of PATH."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return installed[-1] if installed else Path(found) if (found := shutil.which(name)) else None
