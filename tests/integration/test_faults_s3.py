"""One fault in the middle of one thing asked of a store: it is done all the same, and once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from sdflow_core.records import shards
from sdflow_core.records.errors import TransientError
from sdflow_core.records.journal import Journal
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.store import Store, open_source, open_store
from sdflow_core.records.tables import Table
from tests.fault_proxy import KINDS, FaultProxy, Kind, fault_proxy
from tests.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.crash]
_SHORT: tuple[Kind, ...] = ("lost", "truncated")  # what clients are worst at
READS = [
    kind if kind in _SHORT else pytest.param(kind, marks=pytest.mark.long)
    for kind in KINDS
    if kind != "delay"
]
OTHERS = [kind for kind in READS if kind != "truncated"]


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Before the server of the test; strikes only what it is told to."""
    import s3fs

    with fault_proxy(s3, share=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()  # clients of another address
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def opened(proxy: FaultProxy, s3_prefix: str) -> Store:
    return open_store(f"s3://store/{s3_prefix}")


def struck(proxy: FaultProxy, method: str, contains: str, kind: Kind, call: Callable[[], Any]) -> Any:
    """What a call gives while its first request of this kind is struck."""
    before = proxy.struck
    proxy.fail(method, contains, kind=kind)
    answer = call()
    assert proxy.struck == before + 1, "the fault was not met"
    return answer


def rows(*keys: str) -> pa.Table:
    return pa.table({"row_key": keys, "recipe": ["r"] * len(keys), "status": ["kept"] * len(keys)})


def opened_and_read(opened: Store, key: str) -> bytes:
    with opened.open_input(key) as file:
        return file.read()


@pytest.mark.parametrize("kind", READS)
def test_reading(kind: Kind, proxy: FaultProxy, opened: Store) -> None:
    opened.put("a/one", b"x" * 5000)
    assert struck(proxy, "GET", "/a/one", kind, lambda: opened.read("a/one")) == b"x" * 5000
    assert struck(proxy, "GET", "/a/one", kind, lambda: opened_and_read(opened, "a/one")) == b"x" * 5000
    assert struck(proxy, "GET", "list-type", kind, lambda: list(opened.list("a/"))) == ["a/one"]


@pytest.mark.parametrize("kind", OTHERS)
def test_looking(kind: Kind, proxy: FaultProxy, opened: Store) -> None:
    opened.put("a/one", b"x" * 5000)
    assert struck(proxy, "HEAD", "/a/one", kind, lambda: opened.stat("a/one")).size_bytes == 5000
    assert struck(proxy, "HEAD", "/a/one", kind, lambda: opened.exists("a/one")) is True
    assert struck(proxy, "HEAD", "/a/two", kind, lambda: opened.exists("a/two")) is False


@pytest.mark.parametrize("kind", OTHERS)
def test_writing(kind: Kind, proxy: FaultProxy, opened: Store) -> None:
    assert struck(proxy, "PUT", "/a/one", kind, lambda: opened.create("a/one", b"mine")) is True
    assert opened.read("a/one") == b"mine"
    assert struck(proxy, "PUT", "/a/one", kind, lambda: opened.create("a/one", b"another's")) is False
    assert opened.read("a/one") == b"mine"
    struck(proxy, "PUT", "/a/two", kind, lambda: opened.put("a/two", b"again"))
    assert opened.read("a/two") == b"again"
    for method in ("DELETE", "POST"):  # one at a time, or in bulk
        proxy.fail(method, "store/", kind=kind)
    opened.delete("a/two")
    assert proxy.faults[-1].method in ("DELETE", "POST")
    assert list(opened.list("a/")) == ["a/one"]


@pytest.mark.parametrize("kind", OTHERS)
def test_an_entry_is_appended_once(kind: Kind, proxy: FaultProxy, opened: Store) -> None:
    journal = Journal(opened, "j")
    journal.append("note", {"n": 1})
    entry = struck(proxy, "PUT", "/j/0000000002.json", kind, lambda: journal.append("note", {"n": 2}))
    assert entry is not None and entry.number == 2
    for hint in ("/j/HEAD", "/heads/"):
        struck(proxy, "PUT", hint, kind, lambda: journal.append("note", {"n": 3}))
    assert [entry.payload["n"] for entry in journal.entries()] == [1, 2, 3, 3]
    assert journal.verify() == 4


@pytest.mark.parametrize("kind", READS)
def test_a_fault_is_never_taken_for_a_broken_record(kind: Kind, proxy: FaultProxy, opened: Store) -> None:
    Table(opened, "d", "t").commit(rows("a", "b"), run="x")
    key = next(key for key in opened.list("private/datasets/d/t/shards/"))
    table = Table(opened, "d", "t")
    struck(proxy, "GET", key, kind, table.verify)
    shards._cache = shards._Columns()  # nothing of it is in memory
    found = struck(proxy, "GET", key, kind, lambda: table.read(columns=["row_key"]))
    assert found["row_key"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize("kind", READS)
def test_a_source_is_read_and_listed(kind: Kind, proxy: FaultProxy, s3: S3Server, s3_prefix: str) -> None:
    opened = open_store(f"s3://faces/{s3_prefix}")
    opened.put("ann.jpg", b"x" * 5000)
    folder = open_source(f"s3://faces/{s3_prefix}")
    [item] = struck(proxy, "GET", "list-type", kind, lambda: list(folder.list()))
    assert struck(proxy, "GET", "/ann.jpg", kind, lambda: folder.read(item)) == b"x" * 5000


def test_an_abort_is_written_once(proxy: FaultProxy, opened: Store) -> None:
    said: dict[str, Any] = {"inputs": [], "outputs": [], "recipe": None, "bundle": None, "config": None}
    lineage = Lineage(opened)
    lineage.emit("START", run="r1", job="j", parent=None, **said)
    assert struck(proxy, "PUT", "ABORT", "lost", lambda: lineage.abort_once("r1", "it is gone")) is True
    assert lineage.abort_once("r1", "it is gone") is False
    assert [event["eventType"] for event in lineage.events("r1")] == ["START", "ABORT"]


def test_a_server_that_stays_away_is_a_matter_of_the_moment(proxy: FaultProxy, opened: Store) -> None:
    opened.put("a/one", b"x")
    proxy.refuse_all("ServiceUnavailable")
    with pytest.raises(TransientError):
        opened.read("a/one")
    with pytest.raises(TransientError):
        opened.create("a/two", b"x")
    proxy.refuse_all("")
    assert opened.read("a/one") == b"x" and not opened.exists("a/two")


def test_no_room(proxy: FaultProxy, opened: Store) -> None:
    table = Table(opened, "d", "t")
    table.commit(rows("a"), run="x")
    for code, words in (("QuotaExceeded", "quota"), ("InsufficientStorage", "space")):
        for after in (0, 1):  # neither shard nor entry; the shard alone
            proxy.refuse_writes(code, after=after)
            with pytest.raises(Exception) as caught:
                table.commit(rows("b"), run="x")
            said = str(caught.value)
            assert type(caught.value).__name__ in ("ContractError", "TransientError"), said
            assert words in said.lower() or code in said, said
            proxy.refuse_writes("")
            assert table.verify() == 1 and table.held() == {"a"}
    table.commit(rows("b"), run="x")
    assert table.verify() == 2 and table.held() == {"a", "b"}
