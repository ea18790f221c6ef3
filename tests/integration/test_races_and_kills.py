"""Many writers at once, and writers that die at any instant: nothing is lost, nothing is there twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from sdflow_core.records.journal import Journal
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table

ROOT = Path(__file__).resolve().parents[2]
WRITERS = 8
ENTRIES = 50


def rows(keys: list[str]) -> pa.Table:
    return pa.table({"row_key": keys, "recipe": ["r"] * len(keys), "status": ["kept"] * len(keys)})


def write_entries(uri: str, writer: int) -> None:
    journal = Journal(open_store(uri), "j")
    for number in range(ENTRIES):
        entry = journal.append("note", {"writer": writer, "n": number})
        assert entry is not None


def run_processes(target: object, arguments: list[tuple[object, ...]]) -> None:
    # spawn: nothing of this process' memory, so every writer finds out for itself what is there.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=args) for args in arguments]  # pyright: ignore
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.mark.slow
def test_eight_processes_lose_no_entry(store: Store) -> None:
    run_processes(write_entries, [(store.uri, writer) for writer in range(WRITERS)])
    journal = Journal(store, "j")
    entries = list(journal.entries())
    assert journal.verify() == WRITERS * ENTRIES
    assert [entry.number for entry in entries] == list(range(1, WRITERS * ENTRIES + 1))
    for writer in range(WRITERS):
        said = [entry.payload["n"] for entry in entries if entry.payload["writer"] == writer]
        assert said == list(range(ENTRIES))
    head = journal.head()
    assert head is not None and head.number == WRITERS * ENTRIES


def commit_rows(uri: str, seed: int) -> None:
    table = Table(open_store(uri), "d", "t")
    names = [f"row-{number}" for number in range(60)]
    random.Random(seed).shuffle(names)
    for start in range(0, 60, 6):
        table.commit(rows(names[start : start + 6]), run=f"run-{seed}")


@pytest.mark.slow
def test_processes_that_compute_the_same_rows_commit_each_once(store: Store) -> None:
    run_processes(commit_rows, [(store.uri, seed) for seed in range(4)])
    table = Table(store, "d", "t")
    assert table.held() == {f"row-{number}" for number in range(60)}
    assert sum(entry.payload["rows"] for entry in table.journal.entries()) == 60
    assert table.verify() == len(list(table.journal.entries()))
    shards = list(store.list("private/datasets/d/t/shards/"))
    assert sorted(shards) == sorted(entry.payload["shard"] for entry in table.journal.entries())


def test_threads_share_one_view(store: Store) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            commit_rows(store.uri, seed)
            Table(store, "d", "t").read(columns=["row_key"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "writers wait for each other"
    assert not failures
    table = Table(store, "d", "t")
    assert sum(entry.payload["rows"] for entry in table.journal.entries()) == 60


def test_one_of_many_creates(store: Store) -> None:
    won: Counter[bool] = Counter()
    start = threading.Barrier(8)

    def work(name: int) -> None:
        start.wait()
        won[store.create("prize", str(name).encode())] += 1

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == {True: 1, False: 7}


# Commits row after row, and says so after each: what it has said must survive.
WRITER = """
import sys
import pyarrow as pa
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
table = Table(open_store(sys.argv[1]), "d", "t")
for number in range(int(sys.argv[2])):
    key = f"row-{number}"
    if key not in table.held():
        table.commit(pa.table({"row_key": [key], "recipe": ["r"], "status": ["kept"]}), run=sys.argv[3])
    print(number, flush=True)
"""


@pytest.mark.slow
def test_kill_nine_in_the_middle_of_commits_loses_nothing(store: Store) -> None:
    count, said = 60, -1
    chance = random.Random(1)
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, store.uri, str(count), f"run-{attempt}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        # Let it commit a few rows beyond the last attempt, then pull the plug at some instant.
        for line in process.stdout:
            if int(line) >= said + 8:
                break
        time.sleep(chance.random() * 0.03)
        os.kill(process.pid, signal.SIGKILL)
        said = max([said, *(int(line) for line in process.stdout if line.strip().isdigit())])
        process.wait(timeout=30)
        process.stdout.close()
        table = Table(open_store(store.uri), "d", "t")
        assert {f"row-{number}" for number in range(said + 1)} <= table.held()
        table.verify()
    done = subprocess.run(
        [sys.executable, "-c", WRITER, store.uri, str(count), "last"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = Table(store, "d", "t")
    uninterrupted = Table(open_store(store.uri + "-2"), "d", "t")
    uninterrupted.commit(rows([f"row-{number}" for number in range(count)]), run="x")
    assert table.canonical_digest() == uninterrupted.canonical_digest()
    assert sum(entry.payload["rows"] for entry in table.journal.entries()) == count
