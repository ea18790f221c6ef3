"""A real Ray cluster of this machine: nodes at loopback addresses, with GPUs that are only counted."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_START_SECONDS = 120.0
_RAY = "import sys; from ray.scripts.scripts import main; sys.exit(main())"


class RayCluster:
    """A head and further nodes. A node dies like a machine: all its processes at once, without a word."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # short, since the paths of its sockets may have 107 characters
        self._folder = Path(tempfile.mkdtemp(prefix="sdr-"))
        self._sessions: dict[str, int] = {}  # node -> the session that all its processes are in
        self._environment = {**os.environ, **environment}
        self._hosts = (f"127.{_byte()}.{_byte()}.{n}" for n in range(2, 250))
        self._port = _free_port()
        self.address = ""
        self.nodes: list[str] = []

    def start_node(self, gpus: int = 1, cpus: int = 2) -> str:
        """Start one more node; the first is the head. Gives its name."""
        host = next(self._hosts)
        if not self.address:
            self.address = f"{host}:{self._port}"
            kind = [
                "--head",
                f"--port={self._port}",
                f"--temp-dir={self._folder}",
                "--include-dashboard=false",
            ]
        else:
            kind = [f"--address={self.address}"]
        log = self._folder / f"{host}.log"
        with log.open("wb") as out:
            started = subprocess.Popen(
                [
                    *(
                        sys.executable,
                        "-c",
                        "import sys; from ray.scripts.scripts import main; sys.exit(main())",
                    ),
                    *(
                        "start",
                        *kind,
                        f"--node-ip-address={host}",
                        f"--num-gpus={gpus}",
                        f"--num-cpus={cpus}",
                    ),
                    *("--object-store-memory=100000000", "--disable-usage-stats"),
                    *("--min-worker-port=0", "--max-worker-port=0"),
                ],
                env={**self._environment, "RAY_USAGE_STATS_ENABLED": "0"},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions[host] = started.pid
        assert started.wait(_START_SECONDS) == 0, log.read_text()
        self.nodes.append(host)
        return host

    def kill_node(self, host: str) -> None:
        """kill -9 for the node and everything that runs on it."""
        _kill(self._sessions.pop(host))
        self.nodes.remove(host)

    def stop(self) -> None:
        """End everything, surely."""
        for session in self._sessions.values():
            _kill(session)
        shutil.rmtree(self._folder, ignore_errors=True)


def _kill(session: int) -> None:
    deadline = time.monotonic() + 30
    while found := [pid for pid in _processes() if _session_of(pid) == session]:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _session_of(pid: int) -> int:
    """Of a living process; 0 for one that has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state in ("Z", "X") else int(rest[2])


def _byte() -> int:
    return 1 + int.from_bytes(os.urandom(1)) % 250


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_cluster(environment: Mapping[str, str], nodes: int = 2) -> Generator[RayCluster]:
    """A cluster of so many nodes, two CPUs and one counted GPU each, while the block runs.

    Args:
        environment: Of all its processes, beside this one's.
        nodes: How many.
    """
    cluster = RayCluster(environment)
    try:
        for _ in range(nodes):
            cluster.start_node()
        yield cluster
    finally:
        cluster.stop()
