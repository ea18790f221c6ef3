"""Order and pages of listings, with servers that list as S3 does and such that go through their folders."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdflow_core.records.errors import ContractError, UnavailableError
from sdflow_core.records.s3_bucket import Bucket
from sdflow_core.records.s3_listing import Listed, in_order, objects


def _item(key: str) -> Listed:
    return Listed(key, 1, "tag", "", None)


def by_folders(keys: set[str]) -> list[str]:
    """As SeaweedFS lists: the names of a folder in order, a folder where its bare name belongs."""
    return sorted(keys, key=lambda key: key.split("/"))


_keys = st.sets(
    st.lists(st.text("ab-.0 é", min_size=1, max_size=3), min_size=1, max_size=4).map("/".join), max_size=40
)


@given(keys=_keys, held=st.integers(1, 5))
def test_any_tree_comes_out_sorted(keys: set[str], held: int) -> None:
    found = in_order(map(_item, by_folders(keys)), "", held=held)
    assert [item.key for item in found] == sorted(keys)


@given(keys=_keys)
def test_below_a_prefix_too(keys: set[str]) -> None:
    for prefix in ("a", "a/b", "a/"):
        below = {key for key in keys if key.startswith(prefix)}
        found = in_order(map(_item, by_folders(below)), prefix, held=3)
        assert [item.key for item in found] == sorted(below)


def test_only_what_may_be_preceded_is_held_back() -> None:
    seen: list[str] = []

    def coming() -> Iterator[Listed]:
        for number in range(1_000):
            seen.append(f"{number:04}.jpg")
            yield _item(f"{number:04}.jpg")

    found = in_order(coming(), "")
    next(found)
    assert len(seen) <= 2


def test_a_long_listing_lies_on_disk_not_in_memory() -> None:
    def coming(count: int) -> Iterator[Listed]:
        return (_item(f"photos/{number:07}/a-name-of-some-length.jpg") for number in range(count))

    def peak(found: Iterable[Listed]) -> int:
        tracemalloc.start()
        try:
            assert sum(1 for _ in found) == 20_000
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    spooled = peak(in_order(coming(20_000), "", held=1_000))
    assert spooled < peak(in_order(coming(20_000), "", held=20_001)) / 3


class _Server:
    """A bucket that gives pages of three keys, and fails when told to."""

    def __init__(self, keys: list[str], name: str = "", forgets: int = 0) -> None:
        self.keys, self.name, self.forgets = keys, name, forgets
        self.asked: list[dict[str, Any]] = []

    def call(self, operation: str, doing: str, where: str, **asked: Any) -> dict[str, Any]:
        assert operation == "list_objects_v2"
        self.asked.append(asked)
        start = 0
        if "ContinuationToken" in asked:
            if self.forgets:
                self.forgets -= 1
                raise ContractError("the token is not known")
            start = int(asked["ContinuationToken"])
        elif "StartAfter" in asked:
            start = self.keys.index(asked["StartAfter"]) + 1
        page = self.keys[start : start + 3]
        more = start + 3 < len(self.keys)
        return {
            "ResponseMetadata": {"HTTPHeaders": {"server": self.name}},
            "Contents": [{"Key": key, "Size": 1, "ETag": '"x"'} for key in page],
            "IsTruncated": more,
            **({"NextContinuationToken": str(start + 3)} if more else {}),
        }


def _listed(server: _Server) -> list[str]:
    return [item.key for item in objects(cast(Bucket, server), "", "s3://b")]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_pages_without_holes(count: int) -> None:
    keys = [f"k{number}" for number in range(count)]
    assert _listed(_Server(keys)) == keys


def test_a_token_that_the_server_forgot_costs_nothing() -> None:
    keys = [f"k{number}" for number in range(10)]
    server = _Server(keys, forgets=2)
    assert _listed(server) == keys
    assert {"Prefix": "", "StartAfter": "k2"} in server.asked


def test_a_listing_streams() -> None:
    server = _Server([f"k{number}" for number in range(10)])
    listing = objects(cast(Bucket, server), "", "s3://b")
    assert next(listing).key == "k0" and len(server.asked) == 1


def test_another_order_is_noticed_or_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["a/b", "a-b"]
    assert _listed(_Server(keys, "SeaweedFS 8000GB 4.48")) == ["a-b", "a/b"]
    with pytest.raises(ContractError, match="another order"):
        _listed(_Server(keys))
    monkeypatch.setenv("SDFLOW_S3_LISTING", "folders")
    assert _listed(_Server(keys)) == ["a-b", "a/b"]


def test_an_outage_in_the_middle_is_no_end() -> None:
    class Gone(_Server):
        def call(self, operation: str, doing: str, where: str, **asked: Any) -> dict[str, Any]:
            if "ContinuationToken" in asked:
                raise UnavailableError("nobody answers")
            return super().call(operation, doing, where, **asked)

    with pytest.raises(UnavailableError):
        _listed(Gone([f"k{number}" for number in range(10)]))
