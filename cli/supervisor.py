"""The process behind `sdflow up`: starts a Prefect server and a worker, and starts again what dies.

It holds a lock as long as it lives, so that nobody who asks whether it runs is misled by a stale file. What
runs is told in `up.json` beside the lock: addresses and process ids, no secrets.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

from cli.processes import MARK, attached, end, marked, stop
from cli.server import answers, code_path, quiet_environment

__all__ = ["POOL", "Record", "another_server", "locked", "own_address", "read_record", "serve", "up_folder"]

POOL = "sdflow"
_RUNS_AT_ONCE = 4  # of one worker: nightly, refresh, publish and verify do not wait for each other
_HEARTBEAT_SECONDS = 30
_STEADY_SECONDS, _LONGEST_DELAY_SECONDS = 60.0, 60.0
_WORKER_SECONDS, _RUNS_SECONDS, _SERVER_SECONDS = 15.0, 15.0, 20.0
_LOG_BYTES = 10_000_000
_TICK_SECONDS = 0.5


@dataclass
class Part:
    """One supervised process, as `up.json` tells it."""

    pid: int = 0
    since: str = ""
    starts: int = 0


@dataclass
class Record:
    """What runs.

    Attributes:
        url: Address of the API.
        supervisor: Its process id.
        since: When it started.
        database: `sqlite`, `postgresql`, or empty where the server is another's.
        worker: Name of the worker.
        parts: `server` and `worker`; no server where `PREFECT_API_URL` named one.
    """

    url: str
    supervisor: int
    since: str
    database: str
    worker: str
    parts: dict[str, Part] = field(default_factory=dict[str, Part])


def up_folder(state: Path) -> Path:
    """Where `sdflow up` keeps lock, record, logs and database, given the store's state folder."""
    return state / "up"


def read_record(folder: Path) -> Record | None:
    """What the running supervisor last told, or None when none runs."""
    if not locked(folder):
        return None
    try:
        told: dict[str, Any] = json.loads((folder / "up.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None  # it has only just started
    parts = {name: Part(**part) for name, part in told.pop("parts").items()}
    return Record(**told, parts=parts)


def own_address(port: int) -> str:
    """Where our own server answers."""
    return f"http://127.0.0.1:{port}/api"


def another_server(port: int) -> str:
    """The server that `PREFECT_API_URL` names, unless that is the one that we would start ourselves."""
    given = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    return "" if given == own_address(port) else given


def locked(folder: Path) -> bool:
    """Whether a supervisor lives."""
    import fcntl

    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _lock(folder: Path, patience: float = 5.0) -> IO[bytes] | None:
    """The lock, kept as long as the file is open; None when another supervisor has it."""
    import fcntl

    file = (folder / "lock").open("ab")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:  # who asks whether we live holds it for a moment
            if time.monotonic() > deadline:
                file.close()
                return None
            time.sleep(0.05)


class _Child:
    """A process that is started again when it ends, after a pause that grows while it ends at once."""

    def __init__(self, name: str, words: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.words = words
        self.environment = dict(environment)
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.told = Part()
        self._born = 0.0
        self._not_before = 0.0
        self._delay = 1.0

    def alive(self) -> bool:
        """Whether it runs; notices when it has ended."""
        if self.process is None:
            return False
        if self.process.poll() is None:
            return True
        lived = time.monotonic() - self._born
        self._delay = 1.0 if lived > _STEADY_SECONDS else min(2 * self._delay, _LONGEST_DELAY_SECONDS)
        self._not_before = time.monotonic() + self._delay
        print(
            f"{_now()} {self.log.stem} ended with {self.process.returncode} after {lived:.0f} s", flush=True
        )
        self.process = None
        self.told.pid = 0
        return False

    def start(self) -> bool:
        """Starts it, unless it must wait; whether it did."""
        if time.monotonic() < self._not_before:
            return False
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=attached,
                env=self.environment,
                cwd=self.log.parent,
            )
        self._born = time.monotonic()
        self.told = Part(self.process.pid, _now(), self.told.starts + 1)
        return True


class _Stop(Exception):
    """Somebody asked us to end."""


def _asked(number: int, frame: FrameType | None) -> None:
    raise _Stop


def serve(folder: Path, store_uri: str, port: int) -> int:
    """Supervise until SIGTERM or SIGINT.

    Args:
        folder: Of `up_folder`.
        store_uri: Store that the worker's runs work on; an absolute address.
        port: Of the server.

    Returns:
        Exit code: 0 in order, 3 when another supervisor runs already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    if lock is None:
        print(f"{_now()} another supervisor runs", flush=True)
        return 3
    end(marked(folder), 5.0)  # of a supervisor that was killed
    given = another_server(port)
    url = given or own_address(port)
    database = _database(folder)
    kind = "" if given else database.partition("+")[0]
    record = Record(url, os.getpid(), _now(), kind, _worker_name(folder))
    children: dict[str, _Child] = {}
    if not given:
        environment = _server_environment(folder, database)
        children["server"] = _Child("server", _server_words(port), environment, folder)
    children["worker"] = _Child(
        "worker", _worker_words(folder), _worker_environment(folder, store_uri, url), folder
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _asked)
    try:
        _watch(folder, record, children)
    except _Stop:
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _finish(folder, children)
        (folder / "up.json").unlink(missing_ok=True)
        lock.close()
    print(f"{_now()} stopped", flush=True)
    return 0


def _watch(folder: Path, record: Record, children: dict[str, _Child]) -> None:
    server = children.get("server")
    serving = server is None
    told = ""
    while True:
        if server is not None and not server.alive():
            serving = False
            server.start()
        if not serving:
            serving = answers(record.url)
        worker = children["worker"]
        if not worker.alive() and serving:
            worker.start()
        record.parts = {name: child.told for name, child in children.items()}
        text = json.dumps(asdict(record), indent=1)
        if text != told:
            new = folder / "up.json.new"
            new.write_text(text, "utf-8")
            new.replace(folder / "up.json")
            told = text
        time.sleep(_TICK_SECONDS)


def _finish(folder: Path, children: dict[str, _Child]) -> None:
    """Runs, worker, server: in this order, so that each can still tell the next how it ended."""
    worker = children["worker"].process
    server = children["server"].process if "server" in children else None
    serving = set() if server is None else {pid for pid in marked(folder) if _group(pid) == server.pid}
    end(marked(folder) - serving - ({worker.pid} if worker else set()), _RUNS_SECONDS)
    stop(worker, _WORKER_SECONDS)
    end(marked(folder) - serving, _RUNS_SECONDS)  # that were started meanwhile
    stop(server, _SERVER_SECONDS)
    end(marked(folder), 1.0)


def _group(pid: int) -> int:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _database(folder: Path) -> str:
    """Address of the server's database: `SDFLOW_DATABASE_URL`, or a file of SQLite."""
    given = os.environ.get("SDFLOW_DATABASE_URL", "")
    if not given:
        return f"sqlite+aiosqlite:///{folder / 'prefect.db'}"
    scheme, _, rest = given.partition("://")
    return f"postgresql+asyncpg://{rest}" if scheme in ("postgres", "postgresql") else given


def _server_words(port: int) -> list[str]:
    start = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "prefect", *start]


def _server_environment(folder: Path, database: str) -> dict[str, str]:
    return {
        **_environment(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        # in memory, as by default, a slot that is held while the server restarts would never be free again
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }


def _worker_name(folder: Path) -> str:
    return f"sdflow-{os.uname().nodename}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"


def _worker_words(folder: Path) -> list[str]:
    start = ["worker", "start", "--pool", POOL, "--type", "process", "--name", _worker_name(folder)]
    return [sys.executable, "-m", "prefect", *start, "--limit", str(_RUNS_AT_ONCE)]


def _worker_environment(folder: Path, store_uri: str, url: str) -> dict[str, str]:
    return {
        **_environment(folder),
        "PREFECT_API_URL": url,
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(_HEARTBEAT_SECONDS),
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "SDFLOW_STORE": store_uri,
    }


def _environment(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "SDFLOW_DATABASE_URL"}  # holds a password
    quiet = quiet_environment(folder)
    del quiet["PREFECT_LOGGING_SETTINGS_PATH"]  # these write to their own logs
    return {**kept, **quiet, **code_path(), MARK: str(folder)}


def main() -> None:
    """`python -m cli.supervisor FOLDER STORE PORT`, as `sdflow up` starts it."""
    folder, store_uri, port = sys.argv[1:]
    sys.exit(serve(Path(folder), store_uri, int(port)))


if __name__ == "__main__":
    main()
