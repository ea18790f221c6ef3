"""One machine under `sdflow up`: real processes, asked over the server's own API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.running import ROOT, command, environment

T = TypeVar("T")
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def within(seconds: float, what: str, look: Callable[[], T | None]) -> T:
    """What `look` finds, when it finds something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


class Machine:
    """A store, and what runs for it."""

    def __init__(self, store: Path, **settings: str) -> None:
        self.store = store
        self.address = str(store)
        self.up_folder = store / "state" / "up"
        self.said = store.parent / "up.out"
        self.environment = {**environment(), **settings}
        self.url = ""

    def sdflow(self, *words: str, code: int = 0) -> dict[str, Any]:
        """Run a command of the real program; its last line is one JSON object."""
        done = subprocess.run(
            command(self.address, *words),
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == code, done.stderr + done.stdout
        if code == 0:
            assert done.stderr == ""
        return json.loads(done.stdout.strip().splitlines()[-1])

    def up(self, *words: str) -> dict[str, Any]:
        """`sdflow up`, from a shell that is killed with all its children as soon as the command is done."""
        said = self.said
        line = f'"$@" > "{said}"; sleep 600'
        shell = subprocess.Popen(
            ["bash", "-c", line, "bash", *command(self.address, "up", *words)],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            document = within(280, "sdflow up", lambda: said.read_text().strip() if said.exists() else "")
        finally:
            os.killpg(shell.pid, signal.SIGHUP)
            time.sleep(0.2)
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            said.unlink(missing_ok=True)
        found = json.loads(document.splitlines()[-1])
        self.url = found.get("url", "")
        return found

    def ask(self, path: str, body: Any = None, code: int = 0) -> Any:
        """One question to the server; with `code` the refusal that is expected."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        for patience in (1, 5, 20, 0):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    assert not code, "this should have been refused"
                    text = answer.read()
                    return json.loads(text) if text else None
            except urllib.error.HTTPError as error:
                text = error.read().decode()
                if error.code == 503 and patience:  # SQLite is busy: Prefect's own client tries again too
                    time.sleep(patience)
                    continue
                assert error.code == code, f"{path}: {error.code} {text}"
                return json.loads(text)["detail"]
        raise AssertionError("not reached")

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment as the server holds it."""
        found = self.ask("/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        assert len(found) == 1, found
        return found[0]

    def deploy_test_flow(self, name: str, entrypoint: str) -> None:
        """A deployment beside the product's: same pool, same variables."""
        like = self.deployment("verify")
        flow = self.ask("/flows/", {"name": name})
        wanted = {"name": name, "flow_id": flow["id"], "entrypoint": entrypoint, "pull_steps": []}
        pool = {"work_pool_name": "sdflow", "job_variables": like["job_variables"]}
        self.ask("/deployments/", {**wanted, **pool, "enforce_parameter_schema": False})

    def start(self, name: str, parameters: dict[str, Any] | None = None, **more: Any) -> str:
        """Trigger a run of a deployment; its id."""
        identity = self.deployment(name)["id"]
        body = {"parameters": parameters or {}, "state": {"type": "SCHEDULED"}, **more}
        return self.ask(f"/deployments/{identity}/create_flow_run", body)["id"]

    def runs(self, name: str) -> list[dict[str, Any]]:
        """All runs of a deployment."""
        of = {"deployments": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_DESC"}
        return self.ask("/flow_runs/filter", of)

    def run(self, identity: str) -> dict[str, Any]:
        """A run as the server sees it; a server that is busy is asked again."""
        for _ in range(3):
            with suppress(TimeoutError):
                return self.ask(f"/flow_runs/{identity}")
        return self.ask(f"/flow_runs/{identity}")

    def ended(self, identity: str, seconds: float = 150) -> dict[str, Any]:
        """A run when it has ended."""

        def look() -> dict[str, Any] | None:
            found = self.run(identity)
            return found if found["state_type"] in FINAL else None

        return within(seconds, f"the end of run {identity} ({self.run(identity)['state_name']})", look)

    def emit(self, event: str, **payload: str) -> None:
        """An event, as the product emits it."""
        now = datetime.now(UTC).isoformat()
        resource = {"prefect.resource.id": "sdflow.store.test"}
        told = {"occurred": now, "event": event, "resource": resource, "payload": payload}
        self.ask("/events", [{**told, "id": os.urandom(16).hex()}])

    def processes(self) -> set[int]:
        """All processes that belong to it, but the supervisor."""
        from cli.processes import marked

        return marked(self.up_folder.absolute())

    def record(self) -> dict[str, Any]:
        """What the supervisor tells."""
        return json.loads((self.up_folder / "up.json").read_text())


class FarMachine(Machine):
    """The same for a store that is no folder; its state lies below `state`."""

    def __init__(self, address: str, state: Path, **settings: str) -> None:
        super().__init__(state, SDFLOW_STATE=str(state), **settings)
        self.address = address

    def up(self, *words: str) -> dict[str, Any]:
        """See `Machine.up`."""
        found = super().up(*words)
        self.up_folder = Path(self.sdflow("status")["logs"])
        return found
