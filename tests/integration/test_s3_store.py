"""A store on a real S3 server: races, order, pages, threads, processes, two clients, two buckets."""

from __future__ import annotations

import multiprocessing
import os
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdflow_core.records import s3_bucket, s3_clients
from sdflow_core.records.errors import NotFoundError
from sdflow_core.records.journal import Journal
from sdflow_core.records.store import Store, open_store
from tests.s3_server import S3Server

pytestmark = pytest.mark.s3


@pytest.fixture(params=["obstore", "s3fs"])
def store(request: pytest.FixtureRequest, s3: S3Server, s3_prefix: str, monkeypatch: Any) -> Store:
    monkeypatch.setenv("SDFLOW_S3_CLIENT", request.param)
    made = open_store(f"s3://store/{s3_prefix}")
    made.check()
    # whichever this test is about, and no other without a word
    assert (s3_bucket.bucket_of("store").fast is None) == (request.param == "s3fs")
    return made


def _try(store: Store, prize: str, name: int) -> bool:
    return store.create(prize, b"%d" % name)


def test_of_many_threads_one_creates(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        for prize in ("one", "two", "three"):  # the server takes its time over each of these races
            won = list(pool.map(partial(_try, store, prize), range(8)))
            assert sum(won) == 1
            assert store.read(prize) == b"%d" % won.index(True)


def test_of_equal_writers_one_creates(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        for prize in ("one", "two"):
            assert sum(pool.map(partial(_try, store, prize), [7] * 8)) == 1


def _race(uri: str, name: int, told: Any) -> None:
    store = open_store(uri)
    for prize in range(3):
        told.put((prize, name, store.create(f"prize-{prize}", f"{name}".encode())))


def test_of_many_forks_one_creates(store: Store) -> None:
    store.create("warm", b"1")  # the parent's clients are open when it forks
    told = multiprocessing.get_context("fork").SimpleQueue()
    racers: list[int] = []
    for name in range(4):
        child = os.fork()
        if child == 0:
            # Ends without what libraries of other tests have registered for the end of their process.
            try:
                _race(store.uri, name, told)
                os._exit(0)
            finally:
                os._exit(1)
        racers.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(racer, 0)[1]) for racer in racers] == [0] * 4
    _check_race(store, [told.get() for _ in range(12)])


@pytest.mark.long
def test_of_many_processes_one_creates(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    racers = [context.Process(target=_race, args=(store.uri, name, told)) for name in range(4)]
    for racer in racers:
        racer.start()
    said = [told.get(timeout=120) for _ in range(12)]
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    _check_race(store, said)


def _check_race(store: Store, said: list[tuple[int, int, bool]]) -> None:
    winners = {prize: name for prize, name, won in said if won}
    assert Counter(prize for prize, _, won in said if won) == dict.fromkeys(range(3), 1)
    assert all(store.read(f"prize-{prize}") == b"%d" % name for prize, name in winners.items())


def test_a_fork_in_the_middle_of_work_has_clients_of_its_own(store: Store) -> None:
    store.create("a", b"1")
    child = os.fork()
    if child == 0:
        try:
            done = store.read("a") == b"1" and store.create("child", b"2") and list(store.list()) != []
            os._exit(0 if done else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.read("child") == b"2"


def test_many_threads_write_and_read(store: Store) -> None:
    data = {f"p/{number:04}": os.urandom(1_000 + number) for number in range(300)}
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda item: store.put(*item), data.items()))
        assert dict(zip(data, pool.map(store.read, data), strict=True)) == data
        assert all(pool.map(store.exists, data))
        assert not any(pool.map(lambda key: store.create(key, b""), data))
    assert list(store.list("p/")) == sorted(data)


def test_the_order_is_that_of_code_points(store: Store) -> None:
    # a server that goes through its folders would give a/b before a-b
    keys = ["a-b", "a.b", "a/b-c/d", "a/b/c", "a/bc", "a0", "b", "é/y", "中", "😀"]
    for key in reversed(keys):
        store.create(key, b"")
    assert list(store.list()) == sorted(keys)
    assert list(store.list("a/")) == ["a/b-c/d", "a/b/c", "a/bc"]
    assert list(store.list("a/b")) == ["a/b-c/d", "a/b/c", "a/bc"]
    assert list(store.list("nothing")) == []


def test_more_than_a_page(s3: S3Server, s3_prefix: str) -> None:
    store = open_store(f"s3://store/{s3_prefix}")
    keys = [f"{number % 7}/{number:05}" for number in range(2_300)]
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert list(store.list()) == sorted(keys)
    assert list(store.list("3/")) == sorted(key for key in keys if key.startswith("3/"))


def test_odd_but_lawful_keys_go_both_ways(store: Store, s3: S3Server) -> None:
    client: Any = s3.client()
    prefix = store.uri.removeprefix("s3://store/")
    for key in ("a b", "a+b", "a%41", "%2F", "q?x=1", "h#x", "é", "tab\tx", "x" * 200):
        assert store.create(key, key.encode())
        assert store.read(key) == client.get_object(Bucket="store", Key=f"{prefix}/{key}")["Body"].read()
        assert store.stat(key).size_bytes == len(key.encode())
        store.delete(key)
        assert not store.exists(key)


def test_large_objects_are_created_once_and_read_in_pieces(store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(s3_bucket, "LARGE_BYTES", 2**20)  # the way of those that are written in parts
    data = os.urandom(3 * 2**20)
    assert store.create("large", data)
    assert not store.create("large", b"x" * len(data))
    assert store.read("large") == data
    with store.open_input("large") as file:
        assert file.seek(-5, 2) == len(data) - 5 and file.read() == data[-5:] and file.read() == b""
        assert file.seek(1_000) == 1_000 and file.read(10) == data[1_000:1_010]
        file.seek(0)
        assert file.read() == data


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(store: Store) -> None:
    store.put("a", b"1" * 2**20)
    with store.open_input("a") as file:
        store.put("a", b"2" * 2**20)
        with pytest.raises(Exception, match="changed while it was read"):
            file.read()


def test_tables_are_read_in_pieces(store: Store) -> None:
    table = pa.table({"a": list(range(50_000)), "b": [str(number) * 5 for number in range(50_000)]})
    sink = pa.BufferOutputStream()
    writer: Any = pq
    writer.write_table(table, sink, row_group_size=1_000)
    store.create("t.parquet", sink.getvalue().to_pybytes())
    with store.open_input("t.parquet") as file:
        reader: Any = pq.ParquetFile(file)
        assert reader.read(columns=["b"]).equals(table.select(["b"]))
        assert reader.read_row_group(7).num_rows == 1_000
    store.create("empty", b"")
    with store.open_input("empty") as file:
        assert file.read() == b""
    with pytest.raises(NotFoundError):
        store.open_input("nothing")


def test_a_journal_of_several_writers(store: Store) -> None:
    def write(name: int) -> None:
        journal = Journal(open_store(store.uri), f"j/{name % 2}")
        for number in range(5):
            assert journal.append("note", {"name": name, "number": number}) is not None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    for which in (0, 1):
        assert Journal(store, f"j/{which}").verify() == 10


def test_two_buckets_and_two_stores_share_nothing_but_clients(s3: S3Server, s3_prefix: str) -> None:
    one, other = open_store(f"s3://store/{s3_prefix}"), open_store(f"s3a://faces/{s3_prefix}/")
    assert one.create("a", b"1") and other.create("a", b"2")
    assert (one.read("a"), other.read("a")) == (b"1", b"2")
    assert s3_bucket.bucket_of("store") is s3_bucket.bucket_of("store")
    assert s3_bucket.bucket_of("store") is not s3_bucket.bucket_of("faces")
    assert other.url("a") == f"s3://faces/{s3_prefix}/a"  # one place has one name


def test_credentials_come_from_the_usual_chain(
    s3: S3Server, s3_prefix: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = s3.environment()
    for name in environment:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    keys = tmp_path / "keys.sh"
    keys.write_text(
        f'echo \'{{"Version": 1, "AccessKeyId": "{environment["AWS_ACCESS_KEY_ID"]}", '
        f'"SecretAccessKey": "{environment["AWS_SECRET_ACCESS_KEY"]}", '
        '"Expiration": "2999-01-01T00:00:00Z"}\'\n'
    )
    config = tmp_path / "config"
    config.write_text(
        f"[profile ours]\nregion = us-east-1\nendpoint_url = {s3.endpoint}\n"
        f"credential_process = /bin/sh {keys}\ns3 =\n  addressing_style = path\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "ours")
    store = open_store(f"s3://store/{s3_prefix}")
    assert store.create("a", b"1") and store.read("a") == b"1"
    assert s3_bucket.bucket_of("store").fast is not None


def test_virtual_addresses(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    built: dict[str, Any] = {}

    class Face:
        def __init__(self, **settings: Any) -> None:
            built.update(settings)

        def _construct_store(self, bucket: str) -> str:
            return bucket

    import fsspec

    styles = {"path": "http://objects.test:9000", "virtual": "http://bucket.objects.test:9000"}
    for style, endpoint in styles.items():
        monkeypatch.setenv("SDFLOW_S3_ADDRESSING", style)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://objects.test:9000")
        client = s3_clients.s3fs_client()
        client.connect()
        with monkeypatch.context() as patch:
            patch.setattr(fsspec, "get_filesystem_class", lambda name: Face)
            assert s3_clients.bulk_client(client, "bucket") == "bucket"
        assert built["config"]["endpoint"] == endpoint
        assert client.url("bucket/k").startswith(endpoint)


def test_a_store_that_was_never_written_is_empty(s3: S3Server) -> None:
    store = open_store(f"s3://store/{uuid.uuid4().hex}")
    assert list(store.list()) == [] and not store.exists("a")
    store.check_writable()
    assert list(store.list()) == []
