"""A Prefect server for the time of one command, when none is configured. Quiet: all it says goes to a file.

The server that Prefect embeds by itself is stopped before it has written its last states; our own is given
time to drain.
"""

from __future__ import annotations

import ctypes
import hashlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sdflow_core.records.errors import ContractError, SDFlowError, UnavailableError

_START_SECONDS, _DRAIN_SECONDS, _STOP_SECONDS = 180.0, 2.0, 20.0
_TODO_STATE = "set SDFLOW_STATE to a folder of this machine that can be written"
_UP_SECONDS = 60.0  # that a server of `sdflow up` may take to be back
_LOGGING = """version: 1
disable_existing_loggers: false
formatters: {plain: {format: "%(asctime)s %(levelname)s %(name)s %(message)s"}}
handlers: {file: {class: logging.FileHandler, formatter: plain, filename: "PATH"}}
root: {level: WARNING, handlers: [file]}
loggers:
  prefect: {level: WARNING, handlers: [file], propagate: false}
"""


def state_folder(store_uri: str) -> Path:
    """Where the server's database and logs lie: beside a local store, else in the user's state folder.

    Of a store that is no folder of this machine, each has a folder of its own below `SDFLOW_STATE`, or
    `$XDG_STATE_HOME/sdflow`, or `~/.local/state/sdflow`, from whatever directory commands are given. The same
    address at another endpoint is another store. With `SDFLOW_STATE`, local stores have theirs there too.
    """
    remote = "://" in store_uri and not store_uri.startswith("file://")
    given = os.environ.get("SDFLOW_STATE", "")
    if remote:
        address = store_uri.replace("s3a://", "s3://", 1).rstrip("/")
        said = f"{address}\n{_endpoint()}" if address.startswith("s3://") else address
    else:
        local = Path(store_uri.removeprefix("file://")).expanduser().absolute()
        if not given:
            return local / "state"
        address = said = str(local)
    plain = re.sub(r"[^A-Za-z0-9]+", "-", address.partition("://")[2] or Path(address).name).strip("-")
    name = f"{plain[-40:].strip('-')}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    return (Path(given).expanduser().absolute() if given else _user_state()) / name


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def _user_state() -> Path:
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".local" / "state") / "sdflow"
    except RuntimeError as error:
        raise ContractError(
            "this user has no home for the state of a server", found=error, todo=_TODO_STATE
        ) from error


def made(folder: Path) -> Path:
    """A state folder or one in it, made if need be; outside of a store for its owner alone.

    Raises:
        ContractError: It cannot be made.
    """
    try:
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        for one in reversed(missing):
            one.mkdir(mode=0o777 if "state" in (folder.name, folder.parent.name) else 0o700, exist_ok=True)
    except OSError as error:
        raise ContractError(
            "the folder for the server's state cannot be made",
            found=error.strerror,
            where=folder,
            todo=_TODO_STATE,
        ) from error
    return folder


def quiet_environment(home: Path) -> dict[str, str]:
    """Settings under which Prefect keeps to one folder and says little; makes the folder."""
    made(home)
    (home / "profiles.toml").touch()
    logging_file = home / "quiet.yml"  # not logging.yml: that one Prefect would read without being told
    logging_file.write_text(_LOGGING.replace("PATH", str(home / "client.log")))
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_SETTINGS_PATH": str(logging_file),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
    }


def code_path() -> dict[str, str]:
    """`PYTHONPATH` under which other processes import this very code, from wherever they run."""
    root = Path(__file__).resolve().parents[1]
    if {"site-packages", "dist-packages"} & set(root.parts):
        return {}  # installed: it is found by itself
    given = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join([str(root), *([given] if given else [])])}


def live_server(store_uri: str) -> str | None:
    """Address of the server that `sdflow up` runs for this store; waits while it is being restarted.

    Raises:
        SDFlowError: It runs, but has not answered for a while.
    """
    from cli.supervisor import locked, read_record, up_folder

    folder = up_folder(state_folder(store_uri))
    deadline = time.monotonic() + _UP_SECONDS
    while locked(folder):
        record = read_record(folder)
        if record is not None and answers(record.url):
            return record.url
        if time.monotonic() > deadline:
            raise SDFlowError(
                "the server of `sdflow up` does not answer",
                where=folder,
                todo="see `sdflow status` and server.log there; `sdflow down` ends it",
            )
        time.sleep(0.5)
    return None


def point_to_live_server(store_uri: str) -> None:
    """Let `PREFECT_API_URL` name the server of `sdflow up`, if one runs and none is named; never waits."""
    from cli.supervisor import read_record, up_folder

    record = read_record(up_folder(state_folder(store_uri)))
    if record is not None:
        os.environ.setdefault("PREFECT_API_URL", record.url)


def answers(url: str) -> bool:
    """Whether a Prefect server is ready at this address."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


@contextmanager
def prefect_server(store_uri: str) -> Generator[str]:
    """Use the configured server (`PREFECT_API_URL`) or that of `sdflow up`, or run one meanwhile.

    Yields:
        Its API address.

    Raises:
        SDFlowError: It did not come up; names the log file.
    """
    home = state_folder(store_uri) / "prefect"
    quiet = quiet_environment(home)
    given = os.environ.get("PREFECT_API_URL")
    if given:
        reachable(given)
    configured = given or live_server(store_uri)
    if configured:
        os.environ.update({k: v for k, v in quiet.items() if k not in os.environ})
        os.environ["PREFECT_API_URL"] = configured
        try:
            with _lost_server_named(configured):
                yield configured
        finally:
            if not given:
                os.environ.pop("PREFECT_API_URL", None)
        return
    os.environ.update(quiet)
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    log = home / "server.log"
    with log.open("ab") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
            env={
                **os.environ,
                "PREFECT_SERVER_UI_ENABLED": "false",
                "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            },
        )
    try:
        _wait(server, url, log)
        os.environ["PREFECT_API_URL"] = url
        with _lost_server_named(url):
            yield url
        time.sleep(_DRAIN_SECONDS)  # the last task states are still on their way
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        _stop(server)


@contextmanager
def _lost_server_named(url: str) -> Generator[None]:
    """Say it in words of ours when the Prefect server goes away in the middle of a story."""
    try:
        yield
    except SDFlowError:
        raise
    except Exception as error:
        at: BaseException | None = error
        while at is not None and type(at).__module__.partition(".")[0] not in ("httpx", "httpcore"):
            at = at.__cause__ or at.__context__
        if at is None or answers(url.rstrip("/")):
            raise
        raise UnavailableError(
            "the Prefect server does not answer any more",
            where=url,
            todo="what was committed is kept: run the same command again",
        ) from error


def reachable(url: str) -> None:
    """Ask a configured server for a sign of life.

    Raises:
        SDFlowError: It gives none.
    """
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10) as answer:
            if answer.read(64).strip() == b"true":
                return
        found: object = "an answer that is not Prefect's"
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return  # it answers; whether it lets us in is Prefect's to say
        found = f"HTTP status {error.code}"
    except (urllib.error.URLError, OSError, ValueError, http.client.HTTPException) as error:
        found = getattr(error, "reason", error)
    raise SDFlowError(
        "the configured Prefect server does not answer",
        expected="a Prefect API address such as http://HOST:4200/api",
        found=found,
        where=url,
        todo="start it, or unset PREFECT_API_URL to let sdflow run one of its own",
    )


def _end_with_parent() -> None:
    # a killed command must leave no server behind (Linux; elsewhere only the orderly end stops the server)
    if sys.platform == "linux":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of the machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if answers(url):
            return
        time.sleep(0.2)
    raise SDFlowError(
        "the Prefect server did not start",
        where=log,
        todo="read that file; is the disk full, or another Prefect installed?",
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
