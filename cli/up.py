"""`sdflow up | down | status`: a Prefect server and a worker of this machine, kept running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import State, progress, result, state, table

if TYPE_CHECKING:
    from cli.supervisor import Record

__all__ = ["register"]

DEFAULT_PORT = 4200
_UP_SECONDS, _DOWN_SECONDS = 240.0, 90.0
_TRIES = 3  # starts of a server that ends at once, before `up` says so; the supervisor goes on trying


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (up, down, status):
        app.command(command.__name__)(command)


def up(
    context: typer.Context,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=1, max=65535, help="Of the server; default: the last one, or 4200, or a free one."
        ),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, as systemd and containers want it.")
    ] = False,
) -> None:
    """Keep a Prefect server and a worker running for this store; does nothing when they run."""
    from cli.server import made, reachable
    from cli.supervisor import another_server, locked, serve

    now = state(context)
    store = now.store()
    store.check_writable()
    folder = made(_folder(now))
    was_up = locked(folder)
    started = None
    if not was_up:
        chosen = _port(folder, port)
        given = another_server(chosen)
        if given:
            reachable(given)
        if foreground:
            raise typer.Exit(serve(folder, store.uri, chosen))
        started = _start(folder, store.uri, chosen)
    record = _ready(now, folder, started)
    document = {"url": record.url, "ui": _ui(record), "started": not was_up, "database": record.database}
    said = "was already running" if was_up else "is running"
    result(now, document, f"sdflow {said}: {_ui(record)} (`sdflow status`, `sdflow down`)")


def down(context: typer.Context) -> None:
    """End the worker, the runs in progress and the server; a run goes on the next time it is started."""
    from cli.processes import end, marked
    from cli.supervisor import locked, read_record

    now = state(context)
    folder = _folder(now)
    record = read_record(folder)
    with progress(now, "stopping", 1, unit="steps"):
        if record is not None:
            with suppress(ProcessLookupError):
                os.kill(record.supervisor, signal.SIGTERM)
            deadline = time.monotonic() + _DOWN_SECONDS
            while locked(folder) and time.monotonic() < deadline:
                time.sleep(0.1)
            if locked(folder):
                end([record.supervisor], 0)
        left = marked(folder)
        end(left, 5.0)
    was_up = record is not None
    document = {"stopped": was_up, "left_over": len(left)}
    result(now, document, "sdflow is down." if was_up else "Nothing was running.")


def status(context: typer.Context) -> None:
    """Say what runs, since when, and what the night did; exit code 2 if what should run does not."""
    from cli.supervisor import locked, read_record

    now = state(context)
    folder = _folder(now)
    record = read_record(folder)
    document: dict[str, Any] = {"running": record is not None, "logs": str(folder)}
    well = record is not None or not (locked(folder) or (folder / "up.json").exists())
    if record is not None:
        document.update(_looked_at(record))
        well = document["healthy"] and document["worker"].get("state") == "ONLINE"
    document["ok"] = well
    result(now, document, lambda: _show(document))
    if not well:
        raise typer.Exit(2)


# -- inside


def _folder(now: State) -> Path:
    from cli.server import state_folder
    from cli.supervisor import up_folder

    return up_folder(state_folder(now.store_uri))


def _ui(record: Record) -> str:
    return record.url.removesuffix("/api")


def _port(folder: Path, asked: int | None) -> int:
    """The port asked for, else the last one, else 4200, else a free one."""
    from cli.server import free_port, is_free
    from sdflow_core.records.errors import ContractError

    memory = folder / "port"
    if asked is not None and not is_free(asked):
        raise ContractError("this port is in use", found=asked, todo="choose another with --port")
    chosen = asked
    if chosen is None:
        last = memory.read_text("utf-8").strip() if memory.exists() else ""
        wanted = [*([int(last)] if last.isdigit() else []), DEFAULT_PORT]
        chosen = next((port for port in wanted if is_free(port)), None) or free_port()
    memory.write_text(str(chosen), "utf-8")
    return chosen


def _start(folder: Path, store_uri: str, port: int) -> subprocess.Popen[bytes]:
    from cli.server import code_path

    with (folder / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cli.supervisor", str(folder), store_uri, str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the end of this shell is not its end
            env={**os.environ, **code_path()},
            cwd=folder,
        )


def _ready(now: State, folder: Path, started: subprocess.Popen[bytes] | None) -> Record:
    """Wait until the server answers and a worker polls."""
    from cli.server import answers
    from cli.supervisor import read_record
    from sdflow_core.records.errors import SDFlowError

    deadline = time.monotonic() + _UP_SECONDS
    with progress(now, "starting server and worker", None, unit="steps"):
        while time.monotonic() < deadline:
            record = read_record(folder)
            if record is not None and answers(record.url) and _worker(record).get("state") == "ONLINE":
                return record
            ended = started is not None and started.poll() is not None and record is None
            server = record.parts.get("server") if record is not None else None
            if ended or (server is not None and server.starts > _TRIES):
                break
            time.sleep(0.3)
    raise SDFlowError(
        "server and worker did not come up",
        where=folder,
        todo="read supervisor.log, server.log and worker.log there; `sdflow down` ends what runs",
    )


def _ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One question to the API; None when there is no such thing or no answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data=data, headers={"Content-Type": "application/json"})
    for patience in (0.5, 2.0, 0.0):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503):
                return None
            time.sleep(patience)  # busy, as SQLite is now and then
        except (urllib.error.URLError, OSError, ValueError):
            return None
    return None


def _worker(record: Record) -> dict[str, Any]:
    """The worker as the server sees it."""
    from datetime import datetime

    from cli.supervisor import POOL

    found = _ask(record.url, f"/work_pools/{POOL}/workers/filter", {}) or []
    for worker in found:
        heard = worker["last_heartbeat_time"]
        if worker["name"] == record.worker and record.parts["worker"].pid and heard:
            # a sign of life of the process before this one does not count
            fresh = datetime.fromisoformat(heard) >= datetime.fromisoformat(record.parts["worker"].since)
            return {"state": worker["status"] if fresh else "STARTING", "last_heartbeat": heard}
    return {"state": "OFFLINE"}


def _looked_at(record: Record) -> dict[str, Any]:
    from dataclasses import asdict

    from cli.server import answers

    parts = {name: asdict(part) for name, part in record.parts.items()}
    nightly = _ask(record.url, "/deployments/name/nightly/nightly")
    return {
        "url": record.url,
        "ui": _ui(record),
        "since": record.since,
        "database": record.database,
        "supervisor": record.supervisor,
        "healthy": answers(record.url),
        "server": parts.get("server"),
        "worker": {**parts["worker"], **_worker(record)},
        "deployed": nightly is not None,
        "last_nightly": _run(record, nightly, ended=True),
        "running_now": [run["name"] for run in _runs(record, {"type": {"any_": ["RUNNING", "PENDING"]}})],
        "next_nightly": _run(record, nightly, ended=False),
    }


def _runs(record: Record, states: dict[str, Any], deployment: str | None = None) -> Iterator[dict[str, Any]]:
    of = {} if deployment is None else {"deployments": {"id": {"any_": [deployment]}}}
    order = "EXPECTED_START_TIME_ASC" if "SCHEDULED" in states["type"]["any_"] else "END_TIME_DESC"
    body = {**of, "flow_runs": {"state": states}, "sort": order, "limit": 20}
    yield from _ask(record.url, "/flow_runs/filter", body) or []


def _run(record: Record, nightly: dict[str, Any] | None, *, ended: bool) -> dict[str, Any] | None:
    """The nightly run that ended last, or the one that is due next."""
    if nightly is None:
        return None
    types = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"] if ended else ["SCHEDULED"]
    for run in _runs(record, {"type": {"any_": types}}, nightly["id"]):
        if not ended:
            return {"name": run["name"], "due": run["expected_start_time"], "state": run["state_name"]}
        told = {"name": run["name"], "state": run["state_name"], "ended": run["end_time"]}
        return {**told, "seconds": run["total_run_time"], "message": (run["state"] or {}).get("message")}
    return None


def _show(document: dict[str, Any]) -> None:
    if not document["running"]:
        print(
            "Not running."
            if document["ok"]
            else f"It ended by itself: see {document['logs']}, then `sdflow up`."
        )
        return
    server, worker = document["server"], document["worker"]
    last, due = document["last_nightly"], document["next_nightly"]
    rows: list[tuple[str, str]] = [("page", document["ui"]), ("up since", document["since"])]
    if server is not None:
        well = "answers" if document["healthy"] else "does NOT answer"
        rows.append(("server", f"{well}, {document['database']}, {_process(server)}"))
    rows.append(("worker", f"{worker['state']}, {_process(worker)}"))
    if not document["deployed"]:
        rows.append(("nightly", "not deployed: `sdflow deploy --policy POLICY.toml`"))
    else:
        rows.append(
            (
                "last nightly",
                ": ".join(filter(None, (f"{last['state']} at {last['ended']}", last["message"])))
                if last
                else "none",
            )
        )
        rows.append(("next nightly", f"{due['due']} ({due['state']})" if due else "NONE is scheduled"))
    rows.append(("running now", ", ".join(document["running_now"]) or "nothing"))
    rows.append(("logs", document["logs"]))
    table("", ("what", "found"), rows)


def _process(part: dict[str, Any]) -> str:
    if not part["pid"]:
        return "waiting to be started again"
    times = f", started {part['starts']} times" if part["starts"] > 1 else ""
    return f"process {part['pid']} since {part['since']}{times}"
