"""Four writers at once on S3, undisturbed and through faults: every commit is there, and there once."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from sdflow_core.records.consent import subject_hmac
from sdflow_core.records.errors import TransientError
from sdflow_core.records.journal import Journal
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
from tests.fault_proxy import fault_proxy
from tests.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(600)]
WRITERS, MANY, FEW = 4, 50, 12
STEP_RETRIES = 2  # as every step has them


def commit_rows(uri: str, writer: int, commits: int, said: str) -> None:
    """Commits of a row each; a commit that fails for the moment is tried again, as a step is."""
    table = Table(open_store(uri), "d", "t")
    tried: Counter[str] = Counter()
    for number in range(commits):
        key = f"{writer}-{number}"
        rows = pa.table({"row_key": [key], "recipe": ["r"], "status": ["kept"]})
        while True:
            tried[key] += 1
            try:
                table.commit(rows, run=f"run-{writer}")
                break
            except TransientError:
                if tried[key] > STEP_RETRIES:
                    raise
    Path(said).write_text(str(tried.total() - commits))


def append_entries(uri: str, writer: int, commits: int, said: str) -> None:
    """Entries; nobody may try an append again, so it must not fail for the moment."""
    journal = Journal(open_store(uri), "j")
    for number in range(commits):
        assert journal.append("note", {"writer": writer, "n": number}) is not None
    Path(said).write_text("0")


def run_writers(target: object, uri: str, commits: int, folder: Path) -> int:
    """Four processes of their own; gives how many commits had to be tried again."""
    context = multiprocessing.get_context("spawn")
    said = [folder / f"writer-{writer}" for writer in range(WRITERS)]
    processes = [
        context.Process(target=target, args=(uri, writer, commits, str(path)))  # pyright: ignore
        for writer, path in enumerate(said)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=400)
    assert [process.exitcode for process in processes] == [0] * WRITERS
    return sum(int(path.read_text()) for path in said)


@pytest.mark.parametrize(
    ("commits", "share"),
    [
        (FEW, 0.05),
        pytest.param(MANY, 0, marks=pytest.mark.long),
        pytest.param(MANY, 0.05, marks=pytest.mark.long),
    ],
)
def test_no_commit_is_lost_or_doubled(
    commits: int, share: float, s3: S3Server, s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://store/{s3_prefix}"
    with fault_proxy(s3, seed=1, share=share, delay_seconds=(0.05, 0.3)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        run_writers(commit_rows, uri, commits, tmp_path)
        assert (proxy.struck > 5) == bool(share)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    table = Table(open_store(uri), "d", "t")
    wanted = {f"{writer}-{number}" for writer in range(WRITERS) for number in range(commits)}
    entries = list(table.journal.entries())
    assert table.verify() == len(entries) == WRITERS * commits
    rows = table.read(columns=["row_key"])["row_key"].to_pylist()
    assert sorted(rows) == sorted(wanted) == sorted(table.held())
    assert sum(entry.payload["rows"] for entry in entries) == len(wanted)


@pytest.mark.long
@pytest.mark.parametrize("share", [0, 0.05], ids=["calm", "faults"])
def test_no_entry_is_lost_or_doubled(
    share: float, s3: S3Server, s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://store/{s3_prefix}"
    with fault_proxy(s3, seed=2, share=share, delay_seconds=(0.05, 0.3)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        run_writers(append_entries, uri, MANY, tmp_path)
        assert (proxy.struck > 20) == bool(share)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    journal = Journal(open_store(uri), "j")
    said = [(entry.payload["writer"], entry.payload["n"]) for entry in journal.entries()]
    assert journal.verify() == len(said) == WRITERS * MANY
    for writer in range(WRITERS):  # each writer's own order is kept
        assert [n for who, n in said if who == writer] == list(range(MANY))


def make_secret(uri: str, writer: int, commits: int, said: str) -> None:
    """What the first command of a new store does."""
    assert not commits and writer < WRITERS
    Path(f"{said}-ready").touch()
    ready = [Path(said).with_name(f"writer-{other}-ready") for other in range(WRITERS)]
    while not all(path.exists() for path in ready):
        time.sleep(0.005)  # so that all find no key
    Path(said).write_text(str(int(subject_hmac(open_store(uri), "ann"), 16)))


def test_first_commands_at_once_agree_on_the_secret(
    s3: S3Server, s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://store/{s3_prefix}"
    with fault_proxy(s3, share=0, delay_seconds=(1, 1)) as proxy:
        proxy.fail("PUT", "secret.key", nth=1, kind="delay")  # who has asked first comes last
        proxy.fail("PUT", "secret.key", nth=2, kind="lost")  # the key is there, and nobody has heard of it
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        run_writers(make_secret, uri, 0, tmp_path)
    names = {(tmp_path / f"writer-{writer}").read_text() for writer in range(WRITERS)}
    assert len(names) == 1
