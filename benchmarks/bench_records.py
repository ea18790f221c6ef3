"""The records at size: opening, many writers, verifying, compacting, and what is stale.

Usage: `python benchmarks/bench_records.py [--entries 10000 --writers 8 --batches 200 --rows 100000] [--json]`

Every figure of reading is the median of several fresh processes; what a process needs to start and to import
is not counted. Nothing is cached but by the operating system.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
SHARDS = 100

# Each runs in a process of its own: imports first, then the clock.
HEAD = """
import sys, time
from sdflow_core.records.journal import Journal
from sdflow_core.records.store import open_store
start = time.perf_counter()
head = Journal(open_store(sys.argv[1]), "journal").head()
seconds = time.perf_counter() - start
assert head is not None and head.number == int(sys.argv[2]), head
print(seconds)
"""
APPEND = """
import sys, time
from sdflow_core.records.journal import Journal
from sdflow_core.records.store import open_store
start = time.perf_counter()
journal = Journal(open_store(sys.argv[1]), "journal")
journal.append("note", {}, rebase=lambda new, payload: None, after=int(sys.argv[2]) - 1)
print(time.perf_counter() - start)
"""
ALL = """
import sys, time
from sdflow_core.records.journal import Journal
from sdflow_core.records.store import open_store
start = time.perf_counter()
count = sum(1 for _ in Journal(open_store(sys.argv[1]), "journal").entries())
seconds = time.perf_counter() - start
assert count == int(sys.argv[2]), count
print(seconds)
"""
VERIFY = ALL.replace('sum(1 for _ in Journal(open_store(sys.argv[1]), "journal").entries())',
                     'Journal(open_store(sys.argv[1]), "journal").verify()')  # fmt: skip
WRITE = """
import sys
from sdflow_core.records.journal import Journal
from sdflow_core.records.store import open_store
journal = Journal(open_store(sys.argv[1]), "journal")
for number in range(int(sys.argv[3])):
    assert journal.append("note", {"writer": sys.argv[2], "n": number}) is not None
"""
TABLE = """
import sys, time
import pyarrow.parquet
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
start = time.perf_counter()
held = len(Table(open_store(sys.argv[1]), "d", "t").held())
seconds = time.perf_counter() - start
assert held == int(sys.argv[2]), held
print(seconds)
"""


def script(code: str, *words: object) -> str:
    """Runs code in a fresh process; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def measured(code: str, *words: object) -> float:
    """Median seconds that the code itself measured."""
    return statistics.median(float(script(code, *words)) for _ in range(REPEATS))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work gave."""
    start = time.perf_counter()
    given = work()
    return time.perf_counter() - start, given


def journal_figures(folder: Path, entries: int) -> dict[str, Any]:
    """One journal of so many entries, each as large as one that commits rows."""
    from sdflow_core.records.journal import Journal
    from sdflow_core.records.store import open_store

    store = open_store(str(folder))
    journal = Journal(store, "journal")
    payload = {"table": "latents", "recipe": "a" * 64, "row_keys_digest": "b" * 64, "sha256": "c" * 64}
    seconds, _ = timed(
        lambda: [journal.append("note", {**payload, "rows": number}) for number in range(entries)]
    )
    facts: dict[str, Any] = {
        "append_ms": 1000 * seconds / entries,
        "head_ms": 1000 * measured(HEAD, store.uri, entries),
        "open_ms": 1000 * measured(APPEND, store.uri, entries),
        "all_entries_ms": 1000 * measured(ALL, store.uri, entries),
        "verify_seconds": measured(VERIFY, store.uri, entries),
    }
    for key in list(store.list("journal/snapshots/")):
        store.delete(key)
    facts["open_without_snapshots_ms"] = 1000 * measured(APPEND, store.uri, entries)
    before = journal.canonical_digest()
    facts["snapshots"] = journal.compact()
    facts["snapshots_digest_equal"] = journal.canonical_digest() == before
    return facts


def writers_figures(folder: Path, writers: int, batches: int) -> dict[str, Any]:
    """Processes that append at once: how many entries there are, and how many of them are lost or doubled."""
    from sdflow_core.records.journal import Journal
    from sdflow_core.records.store import open_store

    command = [sys.executable, "-c", WRITE, str(folder)]

    def all_of_them() -> None:
        running = [
            subprocess.Popen([*command, str(writer), str(batches)], cwd=ROOT) for writer in range(writers)
        ]
        if sum(process.wait() for process in running):
            raise SystemExit("a writer failed")

    seconds, _ = timed(all_of_them)
    journal = Journal(open_store(str(folder)), "journal")
    count = journal.verify()
    said = {(entry.payload["writer"], entry.payload["n"]) for entry in journal.entries()}
    return {
        "writers_seconds": seconds,
        "writers_entries": count,
        "writers_lost": writers * batches - len(said),
        "writers_doubled": count - len(said),
    }


def table_figures(folder: Path, rows: int) -> dict[str, Any]:
    """A table in many shards: opening it before and after they are merged, and what is stale."""
    import pyarrow as pa

    from sdflow_core.records.compaction import compact
    from sdflow_core.records.keys import sha256_hex
    from sdflow_core.records.store import open_store
    from sdflow_core.records.tables import Table

    store = open_store(str(folder))
    table = Table(store, "d", "t")
    size = max(rows // SHARDS, 1)

    def commits() -> None:
        for start in range(0, rows, size):
            keys = [sha256_hex(str(number).encode()) for number in range(start, min(start + size, rows))]
            shard = {"row_key": keys, "recipe": ["r" * 64] * len(keys), "status": ["kept"] * len(keys)}
            table.commit(pa.table({**shard, "inputs": [[key] for key in keys]}), run="run")

    seconds, _ = timed(commits)
    digests = (table.canonical_digest(), table.journal.canonical_digest())
    facts: dict[str, Any] = {"commit_seconds": seconds, "table_open_ms": 1000 * measured(TABLE, folder, rows)}
    seconds, merged = timed(lambda: compact(store, "d"))
    facts["compact_seconds"] = seconds
    facts["compact_shards"] = list(merged.tables["t"])
    facts["compact_digest_equal"] = (table.canonical_digest(), table.journal.canonical_digest()) == digests
    facts["table_open_compacted_ms"] = 1000 * measured(TABLE, folder, rows)
    facts["table_verified_shards"] = table.verify()
    return {**facts, **stale_figures(rows)}


def stale_figures(rows: int) -> dict[str, Any]:
    """What `bench_stale.py` finds: seconds to say what is stale in tables of so many rows each."""
    command = [sys.executable, str(ROOT / "benchmarks/bench_stale.py"), "--rows", str(rows), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: value for name, value in found.items() if name != "rows"}


def main() -> None:
    """Print the figures; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        facts: dict[str, Any] = vars(options).copy()
        del facts["json"]
        facts |= journal_figures(place / "journal", options.entries)
        facts |= writers_figures(place / "writers", options.writers, options.batches)
        facts |= table_figures(place / "table", options.rows)
    facts = {name: round(value, 3) if isinstance(value, float) else value for name, value in facts.items()}
    for name, value in facts.items():
        print(f"{name:28} {value}")
    if options.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
