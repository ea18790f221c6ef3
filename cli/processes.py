"""Processes of `sdflow up`: found by a mark in their environment, never by their name; ended in order."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["MARK", "attached", "end", "marked", "stop"]

MARK = "SDFLOW_UP"  # its value is the folder of the `sdflow up` that a process belongs to


def attached() -> None:
    """Run in a child before it starts: default signals, and the end with its parent.

    A shell that starts a command with `&` lets it ignore SIGINT, and children inherit that; a Prefect worker
    which ignores SIGINT cannot be stopped.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)


def marked(folder: Path) -> set[int]:
    """Ids of living processes that were started under this folder, children of children too; not our own.

    Empty where the system does not show the environment of its processes (only Linux does).
    """
    wanted = f"{MARK}={folder}".encode()
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or belongs to somebody else
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found - {os.getpid()}


def end(processes: Iterable[int], seconds: float) -> None:
    """Ask processes to end, wait, and kill those that are left."""
    left = set(processes)
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        for process in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, number)
        deadline = time.monotonic() + patience
        while left and time.monotonic() < deadline:
            left = {process for process in left if _alive(process)}
            if left:
                time.sleep(0.1)


def stop(process: subprocess.Popen[bytes] | None, seconds: float) -> None:
    """Ask our own child to end, wait, kill what is left of its group."""
    if process is None:
        return
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError, IndexError):  # one that ended and waits to be asked for its code is not alive
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
