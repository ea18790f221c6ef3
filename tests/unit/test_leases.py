"""Leases: a living run is known to be alive, a killed one is known to be dead, and nothing needs cleaning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sdflow_core.records.errors import ContractError, TransientError
from sdflow_core.records.leases import Lease, is_live, lease, lease_of, leases, live
from sdflow_core.records.objects import LocalStore
from sdflow_core.records.store import Store

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from sdflow_core.records.leases import lease
from sdflow_core.records.store import open_store
with lease(open_store(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(600)
"""


def changed(store: Store, **changes: Any) -> Lease:
    """The lease of run, as another machine or an earlier time would have written it."""
    said = json.loads(store.read("leases/run.json"))
    store.put("leases/run.json", json.dumps({**said, **changes}).encode())
    found = lease_of(store, "run")
    assert found is not None
    return found


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def test_a_lease_lives_as_long_as_its_block(store: Store) -> None:
    with lease(store, "run", "nightly") as mine:
        assert live(store) == {"run"} and is_live(store, "run")
        assert (mine.kind, mine.process(), mine.dead()) == ("nightly", "here", "")
    assert live(store) == set() and list(store.list("leases/")) == []


def test_a_failure_gives_it_up_too(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), lease(store, "run"):
        raise ZeroDivisionError
    assert not is_live(store, "run")


def test_no_name_of_the_machine_is_told(store: Store) -> None:
    import platform

    with lease(store, "run"):
        assert platform.node().encode() not in store.read("leases/run.json")


def test_it_is_renewed(store: Store) -> None:
    with lease(store, "run", renew_seconds=0.01) as mine:
        for _ in range(1000):
            found = lease_of(store, "run")
            if found is not None and found.renewed > mine.renewed:
                break
            threading.Event().wait(0.01)
        else:
            pytest.fail("never renewed")
        assert found.taken == mine.taken


def test_a_store_that_is_away_for_a_moment_ends_nothing(tmp_path: Path) -> None:
    class Away(LocalStore):
        failed = threading.Event()
        puts = 0

        def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
            self.puts += 1
            if self.puts == 2:
                raise TransientError("no answer")
            if self.puts > 3:
                self.failed.set()
            super().put(key, data, durable=durable)

    store = Away(str(tmp_path))
    with lease(store, "run", renew_seconds=0.01):
        assert store.failed.wait(60)
        assert is_live(store, "run")


def test_silence_is_death_wherever_it_was_held(store: Store) -> None:
    with lease(store, "run"):
        assert changed(store, host="elsewhere", boot="x", pid=1, ticks="1").dead() == ""
        assert changed(store, renewed=ago(119)).dead() == ""
        assert "no sign of life" in changed(store, renewed=ago(121)).dead()
        assert live(store) == set()


def test_another_process_under_the_same_number_is_not_it(store: Store) -> None:
    with lease(store, "run"):
        assert "is gone" in changed(store, ticks="1").dead()
        # After another boot, or on a clone of this machine, its numbers say nothing.
        assert changed(store, boot="another").dead() == ""


def test_a_killed_process_is_dead_at_once(store: Store) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.uri], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert live(store) == {"run"}
    os.kill(process.pid, signal.SIGKILL)
    # Not waited for: a process that nobody has buried yet is dead all the same.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert live(store) == set()
    process.wait(timeout=30)
    process.stdout.close()
    assert live(store) == set()
    (found,) = leases(store)
    assert "is gone" in found.dead()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"no", b'{"run": 1}'])
def test_a_broken_lease_is_no_sign_of_life(store: Store, content: bytes) -> None:
    with lease(store, "run"):
        store.put("leases/run.json", content)
        assert (live(store), leases(store), lease_of(store, "run")) == (set(), [], None)


@pytest.mark.parametrize("run", ["", "a/b", ".."])
def test_run_ids_are_checked(store: Store, run: str) -> None:
    with pytest.raises(ContractError, match="run id"), lease(store, run):
        pass
