"""What must not change results: how rows are cut into shards, and how many shards run at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table, wplus_numpy


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shard_size_and_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.ingest import ingest
    from flows.invert import invert
    from flows.label import label
    from tasks.demo import DemoFolder, install_models, make_people
    from tasks.step import Job

    def prepared(name: str, shard_rows: str, workers: str) -> Store:
        monkeypatch.setenv("SDFLOW_SHARD_ROWS", shard_rows)
        monkeypatch.setenv("SDFLOW_WORKERS", workers)
        store = open_store(str(tmp_path / name))
        job = Job(store=store.uri, dataset="demo", parent="test")
        folder: DemoFolder = make_people(install_models(job), 8)
        counts = ingest("demo", folder.photos, folder.consent, store.uri)
        assert counts["in"] == 18 == counts["kept"] + counts["dropped"]
        invert("demo", store.uri)
        label("demo", store.uri)
        return store

    with prefect_test_harness(server_startup_timeout=120):
        one, many = prepared("one", "1000", "1"), prepared("many", "3", "2")
    assert canonical_digests(one, "demo") == canonical_digests(many, "demo")
    tables = [Table(store, "demo", "latents").read().sort_by("row_key") for store in (one, many)]
    assert tables[0]["row_key"].to_pylist() == tables[1]["row_key"].to_pylist()
    # one thread or two may round convolutions differently, rows of one shard or another may not
    assert abs(wplus_numpy(tables[0], "w_plus") - wplus_numpy(tables[1], "w_plus")).max() <= 1e-4
