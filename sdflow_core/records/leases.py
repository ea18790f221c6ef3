"""Leases: which runs are alive. A run that is killed cannot say so, but it stops renewing its lease.

`leases/<run>.json` names the machine (as a hash), the process and when the lease was last renewed; a thread
renews it. A process that is seen to be gone, on this machine, is dead at once; any other by silence, for
which the machines' clocks must agree to within a minute. A lease protects nothing by force: it is how
`reconcile` and `gc` know what they must leave alone.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from .errors import ContractError, NotFoundError, SDFlowError
from .keys import canonical_json, sha256_hex
from .objects import Store

__all__ = ["EXPIRES_SECONDS", "RENEW_SECONDS", "Lease", "is_live", "lease", "lease_of", "leases", "live"]

RENEW_SECONDS = 20.0
EXPIRES_SECONDS = 120.0
_FOLDER = "leases/"


@dataclass(frozen=True)
class Lease:
    """One lease as it was last written.

    Attributes:
        run: Who holds it.
        kind: What kind of run, for people.
        host: Hash of machine and process namespace; no name.
        pid: The process.
        ticks: When it started, in the kernel's ticks since boot; empty where the system does not tell.
        boot: Which boot of the machine; empty where the system does not tell.
        taken: ISO time when it was taken.
        renewed: ISO time of the last sign of life.
        expires_seconds: Silence after which the run counts as dead.
    """

    run: str
    kind: str
    host: str
    pid: int
    ticks: str
    boot: str
    taken: str
    renewed: str
    expires_seconds: float

    def process(self) -> Literal["here", "gone", "elsewhere"]:
        """What this machine can see of its process."""
        # Another boot proves nothing: cloned machines share name and id. Then silence decides.
        if (self.host, self.boot) != (_host(), _boot()):
            return "elsewhere"
        return "here" if _ticks(self.pid) == self.ticks else "gone"

    def dead(self, now: datetime | None = None) -> str:
        """Why the run counts as dead, in words; empty while it lives."""
        if self.process() == "gone":
            return f"its process {self.pid} is gone"
        silence = (now or datetime.now(UTC)) - datetime.fromisoformat(self.renewed)
        if silence > timedelta(seconds=self.expires_seconds):
            return f"it gave no sign of life since {self.renewed}"
        return ""


@contextmanager
def lease(
    store: Store,
    run: str,
    kind: str = "",
    *,
    renew_seconds: float = RENEW_SECONDS,
    expires_seconds: float = EXPIRES_SECONDS,
) -> Generator[Lease]:
    """Holds a lease while the block runs, and renews it from a thread.

    Args:
        store: Where the run works.
        run: Its id.
        kind: What kind of run, for people.
        renew_seconds: Between two signs of life.
        expires_seconds: Silence after which others may take the run for dead.

    Yields:
        The lease as it was taken.

    Raises:
        ContractError: The run id is no part of a key, or the store cannot be written.
    """
    key = _key(run)
    now = _now()
    pid = os.getpid()
    mine = Lease(run, kind, _host(), pid, _ticks(pid), _boot(), now, now, expires_seconds)
    store.put(key, canonical_json(asdict(mine)), durable=False)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(renew_seconds):
            # A store that is away for a moment, or full, ends no run: the next renewal may work.
            with suppress(SDFlowError, OSError):
                document = {**asdict(mine), "renewed": _now()}
                store.put(key, canonical_json(document), durable=False)

    thread = threading.Thread(target=renew, name=f"lease-{run[:8]}", daemon=True)
    thread.start()
    try:
        yield mine
    finally:
        ended.set()
        # A renewal under way must not bring the lease back after it was given up.
        thread.join(expires_seconds)
        with suppress(SDFlowError):
            store.delete(key)


def leases(store: Store) -> list[Lease]:
    """All leases that lie in the store, alive or not. One that cannot be read is nobody's sign of life."""
    found = (lease_of(store, key.removeprefix(_FOLDER).removesuffix(".json")) for key in store.list(_FOLDER))
    return [item for item in found if item is not None]


def lease_of(store: Store, run: str) -> Lease | None:
    """The lease of a run, alive or not; None when there is none, or a broken one."""
    try:
        said = cast("dict[str, Any]", json.loads(store.read(_key(run))))
        found = Lease(**said)
        datetime.fromisoformat(found.renewed)
        timedelta(seconds=found.expires_seconds)
    except (NotFoundError, ValueError, TypeError):
        return None
    return found


def live(store: Store) -> set[str]:
    """Runs that are alive: their lease was renewed lately, and their process is not known to be gone."""
    return {item.run for item in leases(store) if not item.dead()}


def is_live(store: Store, run: str) -> bool:
    """Whether this run holds a lease and is alive."""
    found = lease_of(store, run)
    return found is not None and not found.dead()


def _key(run: str) -> str:
    if not run or "/" in run or run in (".", ".."):
        raise ContractError("a run id must be one part of a key", found=repr(run))
    return f"{_FOLDER}{run}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@cache
def _host() -> str:
    """This machine and, in it, the namespace that process ids are counted in: containers share a machine."""
    known = [platform.node(), _text("/etc/machine-id")]
    with suppress(OSError):
        known.append(os.readlink("/proc/self/ns/pid"))
    return sha256_hex(canonical_json(known))[:16]


@cache
def _boot() -> str:
    return _text("/proc/sys/kernel/random/boot_id")


def _text(path: str) -> str:
    try:
        return Path(path).read_text("ascii", "replace").strip()
    except OSError:
        return ""


def _ticks(pid: int) -> str:
    """When a process of this machine started; "gone" when there is none, or it waits to be buried."""
    stat = _text(f"/proc/{pid}/stat")
    if stat:
        # The name, in brackets, may hold spaces and brackets itself.
        state, *rest = stat.rpartition(")")[2].split()
        return "gone" if state in ("Z", "X") else rest[18]
    if Path("/proc/self/stat").exists():
        return "gone"
    try:
        os.kill(pid, 0)  # no /proc here: the process exists, and nothing says since when
    except ProcessLookupError:
        return "gone"
    except OSError:
        return ""
    return ""
