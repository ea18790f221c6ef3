"""A disk of its own that is soon full, where this machine allows to mount one."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted disk, and a file on it that takes the room."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def leave(self, free_bytes: int) -> None:
        """Takes room until only so much is left, to the next 4 KiB."""
        self.free()
        found = os.statvfs(self.path)
        size = max(found.f_bavail * found.f_frsize - free_bytes, 0)
        with self._ballast.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Gives all room back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(at: Path, size_bytes: int) -> Generator[SmallDisk]:
    """A disk of this size while the block runs; skips the test where nothing can be mounted."""
    at.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(at)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(at)
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)
