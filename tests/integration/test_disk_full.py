"""No room: a clear message, nothing half-written, and the same command goes on when there is room again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from sdflow_core.records.errors import ContractError
from sdflow_core.records.journal import Journal
from sdflow_core.records.objects import TEMPORARY
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
from sdflow_core.records.verification import verify_store
from tests.crashes import DATASET
from tests.nights import ROOT, copy_store, night, orphans_after_gc, whole, write_policy
from tests.small_disk import small_disk

pytestmark = pytest.mark.crash
KB, MB = 2**10, 2**20

# Commits a thousand rows under a limit for the size of a file, and tells what it was told.
LIMITED = """
import resource, sys
import pyarrow as pa
from sdflow_core.records.errors import ContractError
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
keys = [f"{number:064x}" for number in range(1000)]
try:
    Table(open_store(sys.argv[1]), "d", "t").commit(
        pa.table({"row_key": keys, "recipe": ["r"] * 1000, "status": ["kept"] * 1000}), run="x")
except ContractError as error:
    sys.exit(str(error))
"""


def rows(number: int) -> pa.Table:
    """Two hundred rows that take about 10 KB."""
    keys = [os.urandom(32).hex() for _ in range(199)] + [f"row-{number}"]
    return pa.table({"row_key": keys, "recipe": ["r"] * 200, "status": ["kept"] * 200})


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(TEMPORARY)]


def test_commits_on_a_disk_that_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 * MB) as disk:
        store = open_store(str(disk.path / "store"))
        table = Table(store, "d", "t")
        table.commit(rows(0), run="x")
        journal, refused = Journal(store, "notes"), 0
        journal.append("note", {"n": 0})
        for number, left in enumerate((0, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48), start=1):
            disk.leave(left * KB)
            mine, held = rows(number), table.held()
            try:
                table.commit(mine, run="x")
            except ContractError as error:
                refused += 1
                said = str(error)
                assert "cannot be written" in said and "No space left" in said and "free some space" in said
                assert table.held() == held
            disk.free()
            assert table.verify() == len(list(table.journal.entries())) and not half_written(disk.path)
            table.commit(mine, run="x")
            assert table.held() == held | set(mine["row_key"].to_pylist())
        assert refused >= 3
        disk.leave(0)
        with pytest.raises(ContractError, match="No space left"):
            journal.append("note", {"n": 1})
        with pytest.raises(ContractError, match="No space left"):
            store.check_writable()
        disk.free()
        journal.append("note", {"n": 1})
        assert journal.verify() == 2 and not half_written(disk.path)


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """The same without a disk to mount: a shard that is longer than a file may be."""
    words = [sys.executable, "-c", LIMITED, str(tmp_path / "store"), "1000"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr and "File too large" in done.stderr, done.stderr
    table = Table(open_store(str(tmp_path / "store")), "d", "t")
    assert table.verify() == 0 and table.held() == set() and not half_written(tmp_path)
    done = subprocess.run([*words[:-1], str(10 * MB)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Table(open_store(str(tmp_path / "store")), "d", "t").verify() == 1


@dataclass(frozen=True)
class Before:
    """A store before its night, the night's policy, a server on another disk, and how it should end."""

    store: Path
    policy: Path
    server: str
    digests: dict[str, str]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Before]:
    from cli.server import prefect_server

    work, environment = tmp_path_factory.mktemp("full"), dict(os.environ)
    try:
        with prefect_server(str(work / "home")) as server:
            local, photos = work / "base", work / "photos"
            words = [sys.executable, "-m", "tests.crashes", str(local), str(photos), "4"]
            subprocess.run(words, cwd=ROOT, check=True)
            policy = write_policy(work / "few.toml", DATASET, photos)
            calm = copy_store(local, work / "calm")
            night(calm, policy, 2)
            digests, wrong = whole(calm, DATASET)
            assert wrong == 0
            yield Before(local, policy, server, digests)
    finally:
        os.environ.clear()
        os.environ.update(environment)


def run_night(store: Path, policy: Path, server: str) -> tuple[int, str, str]:
    """`sdflow nightly`; without a server it runs its own, whose state lies on the disk of the store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SDFLOW_"))}
    of_server = {"PREFECT_API_URL": server} if server else {}
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "--store", str(store), "--json", "nightly", str(policy)],
        cwd=policy.parent,
        env={**kept, **of_server, "PYTHONPATH": str(ROOT), "SDFLOW_SHARD_ROWS": "2", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("left_bytes", "own_server"),
    [(0, True), (1 * MB, True), (60 * KB, False), (200 * KB, False), (400 * KB, False)],
)
def test_a_night_on_a_disk_that_is_full(
    left_bytes: int, own_server: bool, before: Before, tmp_path: Path
) -> None:
    server = "" if own_server else before.server
    with small_disk(tmp_path / "disk", 128 * MB) as disk:
        store = disk.path / "store"
        copy_store(before.store, store)
        disk.leave(left_bytes)
        code, out, err = run_night(store, before.policy, server)
        check_refusal(code, out, err)
        verify_store(open_store(str(store)))
        assert whole(store, DATASET)[1] == 0, "what is committed is there, and nothing else counts"
        disk.free()
        code, out, err = run_night(store, before.policy, server)
        assert code == 0, out + err
        assert whole(store, DATASET) == (before.digests, 0)
        assert orphans_after_gc(store) == 0 and not half_written(disk.path)


def check_refusal(code: int, out: str, err: str) -> None:
    """One clear message, and no success."""
    assert code == 2, out + err
    assert "Traceback" not in out + err
    error = json.loads(out.strip().splitlines()[-1])["error"]
    assert "unexpected error" not in error["message"], error
    assert "space" in error["message"] or "disk full" in error["message"], error
