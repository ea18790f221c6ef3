"""Listings are streamed: however many keys there are, few of them are held, and none is missed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.listing_server import Listing, listing_server

pytestmark = [pytest.mark.s3, pytest.mark.crash, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
HELD_BYTES = 25 * 2**20  # that a long listing may need more than a short one: 50,000 names need twice that
FEW_PAGES = 64  # that may be asked for ahead

# Lists two pages, so that clients and their buffers are set up, then many, and tells what it saw.
CLIENT = """
import json, resource, sys
from sdflow_core.records.store import open_source, open_store
uri, how, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
def names(prefix):
    if how == "store":
        yield from open_store(uri).list(prefix)
    else:
        for item in open_source(uri + "/" + prefix.rstrip("/")).list():
            assert item.size_bytes and item.etag
            yield item.name
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
assert len(list(names("few/"))) == 2000
seen, last, before, first, in_order = 0, "", peak(), "", True
listing = names("faces/")
for name in listing:
    seen, first, in_order, last = seen + 1, first or name, in_order and name > last, name
    if seen == stop:
        listing.close()
        break
print(json.dumps({"seen": seen, "first": first, "last": last, "sorted": in_order, "grown": peak() - before}))
"""


def listed(server: Listing, bucket: str, how: str, stop: int = -1) -> dict[str, Any]:
    """What a client in a process of its own saw."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, f"s3://{bucket}", how, str(stop)],
        cwd=ROOT,
        env={**kept, **server.environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("keys", "bucket", "how"),
    [
        (50_000, "plain", "store"),
        (50_000, "plain", "source"),
        pytest.param(50_000, "versioned", "source", marks=pytest.mark.long),
        *(
            pytest.param(10_000_000, bucket, how, marks=[pytest.mark.long, pytest.mark.timeout(7200)])
            for bucket, how in (("plain", "store"), ("plain", "source"), ("versioned", "source"))
        ),
    ],
)
def test_a_listing_holds_a_bounded_number_of_keys(keys: int, bucket: str, how: str) -> None:
    with listing_server(keys) as server:
        seen = listed(server, bucket, how)
    start = "faces/" if how == "store" else ""
    assert seen["seen"] == keys and seen["sorted"], seen
    assert (seen["first"], seen["last"]) == (f"{start}{0:010d}.jpg", f"{start}{keys - 1:010d}.jpg")
    assert seen["grown"] < HELD_BYTES, f"{seen['grown'] / 2**20:.0f} MB for {keys:,} keys"


@pytest.mark.parametrize("how", ["store", "source"])
def test_who_wants_few_keys_asks_for_few_pages(how: str) -> None:
    with listing_server(200_000) as server:
        seen = listed(server, "plain", how, stop=10)
        assert seen["seen"] == 10 and server.pages() <= FEW_PAGES
