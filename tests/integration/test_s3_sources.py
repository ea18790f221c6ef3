"""A customer's prefix on a real S3 server: odd names, versions, changes, and a store that lies inside."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Any, cast

import pytest

from sdflow_core.records import retrying, s3_bucket, s3_listing, s3_source
from sdflow_core.records.errors import ContractError, NotFoundError, TransientError, UnavailableError
from sdflow_core.records.s3_bucket import Bucket
from sdflow_core.records.sources import UnfitError
from sdflow_core.records.store import open_source, open_store
from tests.s3_answers import Fault, answering
from tests.s3_server import S3Server

pytestmark = pytest.mark.s3


@pytest.fixture
def client(s3: S3Server) -> Any:
    return s3.client()


@pytest.fixture
def versioned(s3: S3Server, client: Any) -> str:
    name = f"versions-{uuid.uuid4().hex[:8]}"
    s3.make_bucket(name)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


def put(client: Any, bucket: str, key: str, data: bytes) -> None:
    client.put_object(Bucket=bucket, Key=key, Body=data)


def test_odd_names_are_rows(client: Any, s3_prefix: str) -> None:
    plain = ["a b", "a+b", "a%2Fb", "%61", "é", "e\u0301", "😀", "q?x=1", "h#x", "tab\tx", "line\nx", "..."]
    names = [f"{name}.jpg" for name in (*plain, "a-b/c", "a/c", "a.b/c", "quote'\"", "a&b<c>")]
    for name in names:
        put(client, "faces", f"{s3_prefix}/{name}", name.encode())
    put(client, "faces", f"{s3_prefix}/folder/", b"")
    put(client, "faces", f"{s3_prefix}-neighbour/x.jpg", b"not ours")
    source = open_source(f"s3://faces/{s3_prefix}")
    items = list(source.list())
    assert [item.name for item in items] == sorted(names)
    assert [source.read(item) for item in items] == [item.name.encode() for item in items]
    assert [item.uri for item in items] == [f"s3://faces/{s3_prefix}/{item.name}" for item in items]
    json.dumps([item.path for item in items], ensure_ascii=False).encode("utf-8")


class _Oddities:
    """What other servers than the one of these tests keep apart: empty and dotted parts of keys."""

    name = "odd"

    def __init__(self) -> None:
        self.keys = ["p/", "p/../a", "p/./a", "p//a", "p/a", "p/a/", "p/mark/"]

    def call(self, operation: str, *rest: Any, **asked: Any) -> dict[str, Any]:
        if operation == "get_bucket_versioning":
            return {}
        sizes = {"p/": 0, "p/mark/": 0}
        found = [{"Key": key, "Size": sizes.get(key, 1), "ETag": '"x"'} for key in self.keys]
        return {"Contents": found, "IsTruncated": False}

    def check(self, *rest: Any) -> None:
        pass


def test_names_that_no_folder_could_have_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdflow_core.records import s3_source

    monkeypatch.setattr(s3_source, "bucket_of", lambda name: cast(Bucket, _Oddities()))
    items = list(open_source("s3://odd/p").list())
    assert [item.name for item in items] == ["../a", "./a", "/a", "a", "a/"]
    assert len({item.uri for item in items}) == 5


def test_one_object_is_a_source_too(client: Any, s3_prefix: str) -> None:
    put(client, "faces", f"{s3_prefix}/consent.csv", b"1")
    put(client, "faces", f"{s3_prefix}/consent.csv.bak", b"2")
    (item,) = open_source(f"s3://faces/{s3_prefix}/consent.csv").list()
    assert (item.name, item.size_bytes) == ("consent.csv", 1)
    with pytest.raises(NotFoundError, match="nothing under this prefix"):
        list(open_source(f"s3://faces/{s3_prefix}/consent").list())


def test_a_folder_of_nothing_but_its_mark_is_empty(client: Any, s3_prefix: str) -> None:
    put(client, "faces", f"{s3_prefix}/empty/", b"")
    assert list(open_source(f"s3://faces/{s3_prefix}/empty").list()) == []


def test_the_store_inside_a_source_is_no_source(client: Any, s3_prefix: str) -> None:
    store = open_store(f"s3://faces/{s3_prefix}/in/store")
    store.create("released/a.png", b"1")
    put(client, "faces", f"{s3_prefix}/in/a.jpg", b"1")
    put(client, "faces", f"{s3_prefix}/in/store-b.jpg", b"1")
    source = open_source(f"s3://faces/{s3_prefix}/in", store)
    assert [item.name for item in source.list()] == ["a.jpg", "store-b.jpg"]
    (own,) = open_source("store:released", store).list()
    assert (own.name, own.uri) == ("a.png", "store:released/a.png")
    assert open_source("store:released", store).read(own) == b"1"


def test_the_store_itself_is_no_source(s3: S3Server, s3_prefix: str) -> None:
    store = open_store(f"s3://faces/{s3_prefix}/store")
    store.create("private/crops/a.png", b"1")
    with pytest.raises(ContractError, match="the source is the store itself"):
        list(open_source(f"s3://faces/{s3_prefix}/store/", store).list())
    below = open_source(f"s3://faces/{s3_prefix}/store/private", store)
    assert [item.name for item in below.list()] == ["crops/a.png"]


@pytest.mark.parametrize("fault", [Fault(500, "InternalError"), Fault(cut=True)])
def test_an_object_that_the_store_has_lost_is_a_matter_of_this_object(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = replace(retrying.STEADY, attempts=2, unreachable_attempts=2, base_seconds=0.01)
    monkeypatch.setattr(s3_bucket, "STEADY", quick)
    with answering() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.objects["/faces/lost.jpg"] = b"12345678"
        server.faults, server.for_ever = [fault], True
        with pytest.raises(TransientError, match="does not give this object") as failed:
            s3_source.bytes_of("faces/lost.jpg", None, 8)
        assert not isinstance(failed.value, UnavailableError)
        server.listing = Fault(503, "SlowDown")  # nor does it answer anything else
        with pytest.raises(UnavailableError):
            s3_source.bytes_of("faces/lost.jpg", None, 8)


def test_what_changed_after_listing_is_noticed(client: Any, s3_prefix: str) -> None:
    for name in ("same size", "other size", "gone"):
        put(client, "faces", f"{s3_prefix}/{name}", b"first")
    source = open_source(f"s3://faces/{s3_prefix}")
    gone, other, same = source.list()
    put(client, "faces", same.path.partition("/")[2], b"other")
    put(client, "faces", other.path.partition("/")[2], b"longer than before")
    client.delete_object(Bucket="faces", Key=gone.path.partition("/")[2])
    for item in (same, other):
        with pytest.raises(TransientError, match="changed between listing and reading"):
            source.read(item)
    with pytest.raises(NotFoundError, match="vanished"):
        source.read(gone)


def test_parts_are_no_md5_and_read_once(client: Any, s3_prefix: str) -> None:
    key = f"{s3_prefix}/parts.bin"
    upload = client.create_multipart_upload(Bucket="faces", Key=key)["UploadId"]
    which = {"Bucket": "faces", "Key": key, "UploadId": upload}
    parts = [client.upload_part(**which, PartNumber=n, Body=bytes([n]) * 5 * 2**20) for n in (1, 2)]
    tags = [{"PartNumber": n, "ETag": part["ETag"]} for n, part in enumerate(parts, start=1)]
    client.complete_multipart_upload(**which, MultipartUpload={"Parts": tags})
    source = open_source(f"s3://faces/{s3_prefix}")
    (item,) = source.list()
    assert item.etag is not None and item.etag.endswith("-2")
    assert source.read(item) == b"\1" * 5 * 2**20 + b"\2" * 5 * 2**20


@pytest.mark.parametrize("listing", ["by asking each", "of versions"])
def test_exactly_the_listed_version_is_read(
    client: Any, versioned: str, listing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if listing == "of versions":  # as S3 itself is listed; the names here lie in one folder
        monkeypatch.setenv("SDFLOW_S3_LISTING", "keys")
        monkeypatch.setattr(s3_listing, "_server", lambda said: "AmazonS3")
    for name in ("a", "a", "b", "gone", "c"):
        put(client, versioned, f"p/{name}", f"{name} {uuid.uuid4()}".encode())
    client.delete_object(Bucket=versioned, Key="p/gone")  # leaves a mark, and the version behind it
    source = open_source(f"s3://{versioned}/p")
    items = list(source.list())
    assert [item.name for item in items] == ["a", "b", "c"]
    before = [source.read(item) for item in items]
    tags = [item.etag for item in items]
    put(client, versioned, "p/a", b"replaced")
    client.delete_object(Bucket=versioned, Key="p/b")
    put(client, versioned, "p/c", before[2])  # the same bytes again are another version
    assert [source.read(item) for item in items] == before
    now = list(source.list())
    assert [item.name for item in now] == ["a", "c"]
    assert [item.etag for item in now if item.etag in tags] == []
    assert [source.read(item) for item in now] == [b"replaced", before[2]]


def test_versions_of_neighbouring_folders(client: Any, versioned: str) -> None:
    keys = [f"p/{folder}/{number}" for folder in ("a", "a-b", "b") for number in range(4)]
    for key in keys:
        put(client, versioned, key, key.encode())
    source = open_source(f"s3://{versioned}/p")
    items = list(source.list())
    assert [item.name for item in items] == sorted(key.removeprefix("p/") for key in keys)
    assert all(item.etag is not None and "@" in item.etag for item in items)


def test_what_lay_there_before_versions_keeps_its_name(s3: S3Server, client: Any) -> None:
    name = f"later-{uuid.uuid4().hex[:8]}"
    s3.make_bucket(name)
    put(client, name, "p/a", b"1")
    (before,) = open_source(f"s3://{name}/p").list()
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    (after,) = open_source(f"s3://{name}/p").list()
    assert before.etag == after.etag and "@" not in str(after.etag)
    assert open_source(f"s3://{name}/p").read(after) == b"1"


def test_too_large_is_not_read(client: Any, s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdflow_core.records import sources

    put(client, "faces", f"{s3_prefix}/large", bytes(11))
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 10)
    source = open_source(f"s3://faces/{s3_prefix}")
    (item,) = source.list()
    with pytest.raises(UnfitError, match="too large"):
        source.read(item)
