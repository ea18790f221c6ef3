"""`gc` on S3, where objects are dated by another clock than leases: a living run keeps what it will name."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from sdflow_core.records.gc import collect
from sdflow_core.records.keys import canonical_json
from sdflow_core.records.leases import Lease
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
from tests.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.crash, pytest.mark.usefixtures("s3")]
SHARD = "private/datasets/d/t/shards/r-0123.parquet"


def hold_lease(uri: str, ahead: timedelta) -> None:
    """A run of another machine, whose clock is wrong, takes its lease now."""
    now = (datetime.now(UTC) + ahead).isoformat(timespec="milliseconds")
    held = Lease("r1", "nightly", "elsewhere", 1, "1", "another boot", now, now, 86400.0)
    open_store(uri).put("leases/r1.json", canonical_json(asdict(held)))


@pytest.mark.parametrize("minutes", [10, 0, -10])
def test_what_a_living_run_has_written_stays(minutes: int, s3: S3Server, s3_prefix: str) -> None:
    store = open_store(f"s3://store/{s3_prefix}")
    rows = pa.table({"row_key": ["a"], "recipe": ["r"], "status": ["kept"]})
    Table(store, "d", "t").commit(rows, run="x")
    hold_lease(store.uri, timedelta(minutes=minutes))
    store.create(SHARD, b"its entry is on its way")
    time.sleep(1.1)  # of times in whole seconds
    found = collect(store, delete=True, older_than_hours=0)
    assert found.alive == ["r1"] and found.found == [] and store.exists(SHARD)
    store.delete("leases/r1.json")
    found = collect(store, delete=True, older_than_hours=0)
    assert [item.key for item in found.found] == [SHARD] and not store.exists(SHARD)
    assert list(store.list("tmp/")) == []
    assert Table(store, "d", "t").verify() == 1
