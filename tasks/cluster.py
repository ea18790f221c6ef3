"""Shards on a Ray cluster: connecting to one, what it can run, and a batch of shards through prefect-ray.

A process connects once and stays connected, so that the workers keep their opened models from story to story.
Ray is imported here and in workers alone, and only when a story chose it.
"""

from __future__ import annotations

import os
import platform
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sdflow_core.records.errors import ContractError, SDFlowError, TransientError
from tasks.runtime import CALLS, settings, tick

__all__ = ["ray_batch", "slots"]

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15.0
_LOOK_SECONDS = 5.0  # between two looks at which nodes there are
_PATIENCE_SECONDS = 60.0  # without any node that could run a shard
_STOP_SECONDS = 30.0  # for a shard to end in good order
_NODE_DEATHS = 3  # that one shard may see before its story fails
_LOOPBACK = ("localhost", "127.", "::1", "0.0.0.0")

_ours: list[str] = []  # address that this module connected this process to


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import prefect_ray  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import ray
    except ImportError as error:
        raise ContractError(
            "SDFLOW_RUNNER=ray needs Ray, which is not installed",
            found=error,
            todo="pip install 'sdflow-pipeline[ray]', or unset SDFLOW_RUNNER",
        ) from None
    return ray


def _connected() -> Any:
    """The module `ray`, connected.

    Raises:
        ContractError: Ray is not installed, the address is none, or workers could reach no Prefect server.
        TransientError: The cluster does not answer.
    """
    address = settings().ray_address or os.environ.get("RAY_ADDRESS", "") or "local"
    if address == "local" and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # Ray reads this when it is imported. Without it Ray would leave a token in the home folder, and
        # clusters that are started later by the same person would ask for it.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    ray = _ray()
    if ray.is_initialized():
        if not _ours or _ours == [address]:
            return ray
        ray.shutdown()
    _ours.clear()
    _need_prefect_server()
    # Names no credential: what a runtime environment holds is shown on Ray's page and in its logs.
    variables = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1", **_code_path()}
    options: dict[str, Any] = {
        "namespace": "sdflow",
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": {"env_vars": variables},
    }
    if address == "local":
        options["include_dashboard"] = False
    else:
        _answers(address)
        host = address.rpartition(":")[0]
        if host.startswith("127."):
            # otherwise Ray would look for this process's node at the machine's outer address
            options["_node_ip_address"] = host
    try:
        ray.init(address=address, **options)
    except (Exception, SystemExit) as error:
        with suppress(Exception):
            ray.shutdown()
        raise _unreachable(address, f"{type(error).__name__}: {error}") from error
    _ours.append(address)
    try:
        _reach_prefect(ray)
    except SDFlowError:
        ray.shutdown()
        _ours.clear()
        raise
    return ray


def _unreachable(address: str, found: object) -> TransientError:
    return TransientError(
        "the Ray cluster does not answer",
        expected="a running cluster that this machine is a node of, with the same version of Ray",
        found=found,
        where=address,
        todo="`ray status` on its head node; start the story there, or `ray start --address=...` here; "
        "RAY_AUTH_MODE and the token must be those of the cluster",
    )


def _answers(address: str) -> None:
    """Ask for a sign of life, in seconds: Ray itself would try for two minutes, and then end this process."""
    if address.startswith("ray://"):
        raise ContractError(
            "addresses of Ray's client protocol are not supported",
            expected="host:port of the cluster's head, or auto",
            found=address,
            todo="make this machine a node without resources: ray start --address=host:port --num-cpus=0",
        )
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ContractError("this is no address of a Ray cluster", expected="host:port", found=address)
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, error) from None
    command = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    try:
        asked = subprocess.run(
            [sys.executable, "-c", command, "health-check", "--address", address],
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unreachable(address, f"no answer within {_ANSWER_SECONDS:.0f} s") from None
    if asked.returncode != 0:
        said = asked.stderr.strip().splitlines() or ["it is not healthy"]
        raise _unreachable(address, said[-1])


def _code_path() -> dict[str, str]:
    """`PYTHONPATH` of a source checkout; an installed package is found on every node by itself."""
    root = Path(__file__).resolve().parents[1]
    if {"site-packages", "dist-packages"} & set(root.parts):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))}


def _need_prefect_server() -> None:
    if not _prefect_api():
        raise ContractError(
            "the workers of a cluster need a Prefect server",
            expected="PREFECT_API_URL, reachable from every node",
            todo="start the story by the command line or a deployment, or set PREFECT_API_URL",
        )


def _reach_prefect(ray: Any) -> None:
    here = platform.node()
    elsewhere = any(node["Alive"] and node["NodeManagerHostname"] != here for node in ray.nodes())
    if elsewhere and (urlsplit(_prefect_api()).hostname or "").startswith(_LOOPBACK):
        raise ContractError(
            "the nodes of the cluster cannot reach this Prefect server: it serves this machine alone",
            expected="PREFECT_API_URL with an address that every node can reach",
            found=_prefect_api(),
            todo="run a server for all of them (prefect server start --host ...), and set PREFECT_API_URL",
        )


def _prefect_api() -> str:
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or ""


def _room(ray: Any) -> int:
    """How many shard tasks the living nodes can run at once."""
    now = settings()
    wanted = {"CPU": now.cpus_per_task, "GPU": now.gpus}
    found = 0
    for node in ray.nodes():
        if node["Alive"]:
            rooms = [int(node["Resources"].get(name, 0) / n) for name, n in wanted.items() if n]
            found += min(rooms, default=1)
    return found


def slots() -> int:
    """How many shard tasks the cluster can run at the same time; connects to it.

    Raises:
        ContractError: No node offers what one shard task asks for.
        TransientError: The cluster does not answer.
    """
    ray = _connected()
    found = _room(ray)
    if not found:
        raise _no_room(ray, ContractError)
    return found


def _no_room(ray: Any, kind: type[SDFlowError]) -> SDFlowError:
    now = settings()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    offers = sorted(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
    return kind(
        "no node of the Ray cluster can run a shard task",
        expected=f"a node with {now.cpus_per_task:g} CPUs and {now.gpus:g} GPUs",
        found=", ".join(offers) or "no node",
        where=_ours[0] if _ours else None,
        todo="start such a node; or change SDFLOW_DEVICE, SDFLOW_GPUS_PER_TASK or SDFLOW_CPUS_PER_TASK",
    )


class _RayBatch:
    """Shards of one step as tasks of a Ray cluster; see `tasks.fan_out.Batch`."""

    def __init__(self, ray: Any, submit: Any, name: str, shards: Sequence[Any]) -> None:
        self._ray, self._submit, self._name = ray, submit, name
        self._room, self._looked, self._roomy = slots(), time.monotonic(), time.monotonic()
        self._rows = [getattr(shard, "rows", 1) for shard in shards]
        self._begun: dict[Any, int] = {}  # rows of those under way
        self._done = 0

    def window(self) -> int:
        """Twice what the cluster can run, so that no worker waits for the next shard; or what is set."""
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked, self._room = now, _room(self._ray)
            if self._room:
                self._roomy = now
            elif now - self._roomy > _PATIENCE_SECONDS:
                raise _no_room(self._ray, TransientError)
        return settings().ray_tasks or max(1, 2 * self._room)

    def start(self, shard: Any) -> Any:
        """Hand one shard to the cluster."""
        future = self._submit(shard)
        self._begun[future] = getattr(shard, "rows", 1)
        return future

    def ended(self, begun: Sequence[Any]) -> Sequence[Any]:
        """Those that have ended; while it waits, it looks at the cluster from time to time."""
        inner = {future.wrapped_future: future for future in begun}
        while True:
            refs = list(inner)
            done, _ = self._ray.wait(refs, num_returns=1, timeout=_LOOK_SECONDS, fetch_local=True)
            if done:
                return [inner[ref] for ref in done]
            self.window()

    def result(self, one: Any) -> Any:
        """What the step gave; its calls of networks are counted here."""
        try:
            done = one.result()
        except self._ray.exceptions.RayTaskError as error:
            raise ContractError(
                "a node of the cluster cannot run this code",
                expected="the same installation on all nodes",
                found=str(error.cause).partition("\n")[0],
                todo="install sdflow-pipeline[ray] in the environment that `ray start` was called from",
            ) from None
        except self._ray.exceptions.RayError as error:
            raise TransientError(
                f"a shard of {self._name} was lost with its worker, more than once",
                found=type(error).__name__,
                todo="see the logs of the node (out of memory?) and start the story again: it goes on",
            ) from None
        CALLS.update(done.calls)
        self._done += self._begun.pop(one)
        tick(self._name, self._done, sum(self._rows))
        return done.result

    def stop(self, begun: Sequence[Any]) -> None:
        """Ask all to end, and end those that do not."""
        left = [future.wrapped_future for future in begun]
        for force in (False, True):
            for ref in left:
                with suppress(Exception):
                    self._ray.cancel(ref, force=force)
            if left:
                _, left = self._ray.wait(
                    left, num_returns=len(left), timeout=_STOP_SECONDS, fetch_local=False
                )


@contextmanager
def ray_batch(run_step: Any, job: Any, shards: Sequence[Any], rest: Sequence[Any]) -> Generator[_RayBatch]:
    """A batch of shards on the cluster; each asks a node for CPUs and GPUs, as the settings say.

    Raises:
        ContractError: Ray is not installed, or no node offers what one shard task asks for.
        TransientError: The cluster does not answer.
    """
    slots()
    ray = _connected()
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    from tasks.away import order_for
    from tasks.step import on_a_node

    order = order_for(run_step, job)
    away = on_a_node.with_options(
        name=run_step.name,
        retries=run_step.retries,
        retry_delay_seconds=run_step.retry_delay_seconds,
        retry_condition_fn=run_step.retry_condition_fn,
    )
    now = settings()
    # A worker is used again (max_calls=0): opening torch and the models anew costs more than a shard.
    wants = remote_options(
        num_cpus=now.cpus_per_task, num_gpus=now.gpus, max_retries=_NODE_DEATHS, max_calls=0
    )
    with RayTaskRunner() as runner, wants:

        def submit(shard: Any) -> Any:
            return runner.submit(away, {"order": order, "rest": (shard, *rest)})

        yield _RayBatch(ray, submit, run_step.name, shards)
