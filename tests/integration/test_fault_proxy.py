"""The fault proxy itself, before a real server: what passes is untouched, what is struck is what it says."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.fault_proxy import KINDS, FaultProxy, Kind, fault_proxy
from tests.s3_server import KEY, SECRET, S3Server

pytestmark = [pytest.mark.s3, pytest.mark.crash]


def client_of(proxy: FaultProxy, **config: Any) -> Any:
    """A plain client that tries everything once."""
    import botocore.session
    from botocore.config import Config

    return botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=proxy.endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, **config),
    )


def text_of(call: Callable[[], Any]) -> str:
    """The words of the error that a call ends with."""
    with pytest.raises(Exception) as caught:
        call()
    return f"{type(caught.value).__name__} {caught.value}"


def test_everything_passes_when_nothing_is_struck(s3_server: S3Server, s3_prefix: str) -> None:
    with fault_proxy(s3_server, share=0) as proxy:
        client = client_of(proxy)
        large = bytes(range(256)) * 4 * 1024 * 6  # 6 MiB: more than the least part of a multipart upload
        for name, data in (("empty", b""), ("small", b"x" * 1000), ("large", large)):
            client.put_object(
                Bucket="store", Key=f"{s3_prefix}/{name}", Body=data
            )  # 100-continue, aws-chunked
            assert client.get_object(Bucket="store", Key=f"{s3_prefix}/{name}")["Body"].read() == data
        key = f"{s3_prefix}/parts and ümlauts"
        upload = client.create_multipart_upload(Bucket="store", Key=key)["UploadId"]
        which = {"Bucket": "store", "Key": key, "UploadId": upload}
        tags = [client.upload_part(**which, PartNumber=n, Body=large)["ETag"] for n in (1, 2)]
        parts = [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, 1)]
        client.complete_multipart_upload(**which, MultipartUpload={"Parts": parts})
        assert client.head_object(Bucket="store", Key=key)["ContentLength"] == 2 * len(large)
        part = client.get_object(Bucket="store", Key=key, Range="bytes=5-9")["Body"].read()
        assert part == large[5:10]
        assert "404" in text_of(lambda: client.head_object(Bucket="store", Key=f"{s3_prefix}/none"))
        again = {"Bucket": "store", "Key": f"{s3_prefix}/small", "Body": b"y", "IfNoneMatch": "*"}
        assert "PreconditionFailed" in text_of(lambda: client.put_object(**again))
        listed = client.list_objects_v2(Bucket="store", Prefix=f"{s3_prefix}/")["Contents"]
        assert {one["Key"].rpartition("/")[2] for one in listed} == {
            "empty",
            "small",
            "large",
            "parts and ümlauts",
        }
        client.delete_objects(Bucket="store", Delete={"Objects": [{"Key": one["Key"]} for one in listed]})
        assert client.list_objects_v2(Bucket="store", Prefix=f"{s3_prefix}/")["KeyCount"] == 0
        assert proxy.struck == 0 and proxy.counts["PUT", "passed"] >= 6


def test_clients_of_the_product_pass(s3_server: S3Server, s3_prefix: str) -> None:
    import obstore
    from obstore.store import S3Store

    with fault_proxy(s3_server, share=0) as proxy:
        said = {"access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"}
        options: dict[str, Any] = {"allow_http": True}
        store: Any = S3Store("store", endpoint=proxy.endpoint, client_options=options, **said)  # pyright: ignore
        obstore.put(store, f"{s3_prefix}/a", b"z" * 20_000_000)  # many parts, several connections
        assert len(obstore.get(store, f"{s3_prefix}/a").bytes()) == 20_000_000


def test_each_fault_is_what_it_says(s3_server: S3Server, s3_prefix: str) -> None:
    with fault_proxy(s3_server, share=0) as proxy:
        client = client_of(proxy, read_timeout=20)
        key = {"Bucket": "store", "Key": f"{s3_prefix}/journal/1"}

        def struck(method: str, kind: Kind, call: Callable[[], Any]) -> str:
            proxy.fail(method, "/journal/", kind=kind)
            said = text_of(call)
            assert proxy.faults[-1].kind == kind and proxy.faults[-1].method == method
            return said

        def there() -> bool:
            return s3_server.client().list_objects_v2(Bucket="store", Prefix=key["Key"])["KeyCount"] == 1  # type: ignore[attr-defined]

        assert "Connection" in struck("PUT", "reset", lambda: client.put_object(**key, Body=b"1"))
        assert "SlowDown" in struck("PUT", "slowdown", lambda: client.put_object(**key, Body=b"1"))
        assert "InternalError" in struck("PUT", "error", lambda: client.put_object(**key, Body=b"1"))
        assert not there(), "the server has not heard of these"
        assert "Connection" in struck("PUT", "lost", lambda: client.put_object(**key, Body=b"12345678"))
        assert there(), "the write happened, its answer was lost"
        assert "503" in struck("HEAD", "slowdown", lambda: client.head_object(**key))
        assert "Connection" in struck("GET", "lost", lambda: client.get_object(**key)["Body"].read())
        said = struck("GET", "truncated", lambda: client.get_object(**key)["Body"].read())
        assert "IncompleteRead" in said or "Connection" in said or "not read all" in said, said
        assert client.get_object(**key)["Body"].read() == b"12345678", "nothing is struck twice"
        proxy.fail("PUT", "/journal/", nth=3, kind="slowdown")
        client.put_object(**key, Body=b"1")
        client.put_object(**key, Body=b"2")
        assert "SlowDown" in text_of(lambda: client.put_object(**key, Body=b"3"))
        proxy.delay_seconds = (0.0, 0.0)
        proxy.fail("PUT", "/journal/", kind="delay")
        client.put_object(**key, Body=b"4")
        assert proxy.counts["PUT", "delay"] == 1


def test_refusals_last_until_they_are_taken_back(s3_server: S3Server, s3_prefix: str) -> None:
    with fault_proxy(s3_server, share=0) as proxy:
        client = client_of(proxy)
        key = {"Bucket": "store", "Key": f"{s3_prefix}/a"}
        client.put_object(**key, Body=b"1")
        for code, status in (
            ("QuotaExceeded", "QuotaExceeded"),
            ("InsufficientStorage", "InsufficientStorage"),
        ):
            proxy.refuse_writes(code)
            assert status in text_of(lambda: client.put_object(**key, Body=b"2"))
            assert client.get_object(**key)["Body"].read() == b"1"
        client.delete_object(**key)  # how space is made
        proxy.refuse_writes("")
        client.put_object(**key, Body=b"3")
        proxy.refuse_all()
        assert "503" in text_of(lambda: client.head_object(**key))
        assert "ServiceUnavailable" in text_of(lambda: client.get_object(**key))
        proxy.refuse_all("")
        assert client.get_object(**key)["Body"].read() == b"3"


def ask(proxy: FaultProxy, method: str, path: str) -> str:
    """One unsigned request on a connection of its own; the server refuses it, if it hears of it."""
    where = urlsplit(proxy.endpoint)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        answer.read()
        return str(answer.status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def test_a_seed_means_the_same_faults(s3_server: S3Server) -> None:
    paths = [f"/store/x/{n % 40:010d}.json" for n in range(200)]
    found: list[list[Any]] = []
    for seed in (1, 1, 2):
        with fault_proxy(s3_server, seed=seed, delay_seconds=(0, 0)) as proxy:
            said = [ask(proxy, "GET", path) for path in paths]
            assert (
                proxy.struck
                == len(proxy.faults)
                == sum(proxy.counts.values()) - proxy.counts["GET", "passed"]
            )
            assert 2 <= proxy.struck <= 25  # 5 % of 200
            found.append([proxy.faults, said])
            proxy.clear()
            assert [ask(proxy, "GET", path) for path in paths[:100]] == said[:100]
    assert found[0] == found[1] and found[0] != found[2]


def test_names_made_by_chance_count_as_one(s3_server: S3Server) -> None:
    with fault_proxy(s3_server, seed=3, share=1, kinds=("slowdown",)) as proxy:
        first = f"/store/{'ab12' * 3}/lineage/{'0f' * 16}/{'1' * 20}-deadbeef-START.json"
        second = f"/store/{'cd34' * 3}/lineage/{'1e' * 16}/{'2' * 20}-facade01-START.json"
        assert ask(proxy, "PUT", first) == ask(proxy, "PUT", second) == "503"
        assert ask(proxy, "PUT", "/store/journal/0000000042.json") == "503"
        named = [(fault.name, fault.nth) for fault in proxy.faults]
    assert named[0][0] == named[1][0] and (named[0][1], named[1][1]) == (1, 2)
    assert named[2] == ("/store/journal/0000000042.json", 1), "numbers of journal entries are no chance"


def test_off_on_and_every_kind(s3_server: S3Server) -> None:
    with fault_proxy(s3_server, seed=1, share=1, delay_seconds=(0, 0)) as proxy:
        proxy.enabled = False
        assert ask(proxy, "GET", "/store/a") == "403" and proxy.struck == 0
        proxy.enabled = True
        for number in range(120):
            ask(proxy, "GET", f"/store/{number}")
        assert {kind for _, kind in proxy.counts} - {"passed"} == set(KINDS)
        assert proxy.struck == 120


def test_a_server_that_is_away_is_a_reset(s3_server: S3Server) -> None:
    with fault_proxy(s3_server, share=0) as proxy:
        proxy._upstream = ("127.0.0.1", 1)  # nobody listens there
        assert ask(proxy, "GET", "/store/a") in ("ConnectionResetError", "RemoteDisconnected")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(proxy.endpoint, timeout=5)
