"""The real command in a real process against a real Prefect server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("demo", "--images", "8", "--training-steps", "10")


def command(store: Path | str, *words: str) -> list[str]:
    return [sys.executable, "-m", "cli.main", "--store", str(store), "--json", *words]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "SDFLOW_"))}
    return {**kept, "OMP_NUM_THREADS": "1"}


def sdflow(store: Path, *words: str, code: int = 0) -> dict[str, Any]:
    """Run a command; its last line is one JSON object."""
    done = subprocess.run(
        command(store, *words), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == code, done.stderr + done.stdout
    if code == 0:
        assert done.stderr == ""
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
