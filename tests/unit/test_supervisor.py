"""Processes of `sdflow up`: found by their mark, ended in order, started again with pauses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cli.supervisor as module
from cli.processes import MARK, end, marked
from cli.supervisor import locked, read_record

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)
print("ready", flush=True)
time.sleep(120)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes show their environment on Linux")


@pytest.fixture
def family(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a child in a session of its own, both ignoring SIGTERM."""
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    process = subprocess.Popen(
        [sys.executable, str(script), str(script)],
        env={**os.environ, MARK: str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    yield process
    end(marked(tmp_path), 0)
    process.wait()
    process.stdout.close()


def test_children_of_children_are_found_and_ended(family: subprocess.Popen[str], tmp_path: Path) -> None:
    found = marked(tmp_path)
    assert family.pid in found and len(found) == 2
    assert not marked(tmp_path / "elsewhere")
    end(found, 0.2)
    assert not marked(tmp_path)


def test_pauses_grow_while_a_process_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    child: Any = module._Child("short", [sys.executable, "-c", ""], os.environ, tmp_path)

    def pause_after(lived: float) -> float:
        assert child.start()
        child.process.wait()
        clock[0] += lived
        assert not child.alive()
        before = clock[0]
        while not child.start():
            clock[0] += 0.5
        child.process.wait()
        pause = clock[0] - before
        clock[0] += lived
        child.alive()
        clock[0] += 1000
        return pause

    pauses = [pause_after(0.0) for _ in range(5)]
    assert pauses == sorted(pauses) and pauses[0] < pauses[2]
    assert pauses[-1] == pauses[-2] == module._LONGEST_DELAY_SECONDS
    assert pause_after(3600.0) <= pauses[0], "one that lived long is started again soon"


def test_a_record_without_a_living_supervisor_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "up.json").write_text('{"url": "http://127.0.0.1:1/api", "parts": {}}')
    assert not locked(tmp_path)
    assert read_record(tmp_path) is None


def test_two_supervisors_never_run_at_once(tmp_path: Path) -> None:
    first = module._lock(tmp_path)
    assert first is not None and locked(tmp_path)
    assert module._lock(tmp_path, patience=0.1) is None
    first.close()
    assert not locked(tmp_path)
