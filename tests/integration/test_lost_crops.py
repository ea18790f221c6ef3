"""A crop that went away, or is another one now, costs its own row; nothing is mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from tasks.latents import CHANGED_CROP, LOST_CROP
from tasks.runtime import networks_from
from tests.fakes import FakeNetworks
from tests.pictures import tiny
from tests.shards import CONSENT, job_for, run_ingest, run_invert, run_label, with_models

STEPS = {"latents": run_invert, "labels": run_label}


@pytest.fixture
def ingested(tmp_path: Path) -> tuple[Store, Any, list[dict[str, Any]]]:
    store = open_store(str(tmp_path / "store"))
    job = job_for(store, with_models(store))
    (pictures := tmp_path / "pictures").mkdir()
    for number, data in enumerate(tiny()[:5]):
        (pictures / f"{number}.png").write_bytes(data)
    (consent := tmp_path / "consent.csv").write_text(CONSENT)
    with networks_from(FakeNetworks):
        run_ingest(job, str(pictures), consent)
    faces = Table(store, job.dataset, "faces").read(statuses=["kept"]).to_pylist()
    assert len(faces) == 5
    return store, job, faces


@pytest.mark.parametrize("table", list(STEPS))
def test_a_lost_and_a_changed_crop_cost_their_rows(
    table: str, ingested: tuple[Store, Any, list[dict[str, Any]]]
) -> None:
    store, job, faces = ingested
    whole = store.read(faces[1]["crop"]), store.read(faces[2]["crop"])
    store.delete(faces[0]["crop"])
    store.put(faces[1]["crop"], whole[1])  # another person's
    store.put(faces[2]["crop"], whole[1][:300])
    with networks_from(FakeNetworks):
        STEPS[table](job)
        rows = {row["face_id"]: row for row in Table(store, job.dataset, table).read().to_pylist()}
        said = [(rows[face["face_id"]]["status"], rows[face["face_id"]]["reason"]) for face in faces]
        assert said == [("failed", LOST_CROP), *[("failed", CHANGED_CROP)] * 2, *[("kept", "")] * 2]
        store.put(faces[1]["crop"], whole[0])  # restored: the next run does what is left, and only that
        plan = STEPS[table](job)
    assert plan.wanted == 5 and plan.held == 2
    rows = {row["face_id"]: row for row in Table(store, job.dataset, table).read().to_pylist()}
    assert [rows[face["face_id"]]["status"] for face in faces] == ["failed", "kept", "failed", "kept", "kept"]


def test_a_lost_crop_is_made_again_by_ingesting_its_picture_elsewhere(
    ingested: tuple[Store, Any, list[dict[str, Any]]], tmp_path: Path
) -> None:
    store, job, faces = ingested
    whole = store.read(faces[0]["crop"])
    store.delete(faces[0]["crop"])
    with networks_from(FakeNetworks):
        other = job_for(store, job.bundle, "other")
        run_ingest(other, str(tmp_path / "pictures"), tmp_path / "consent.csv")
        assert store.read(faces[0]["crop"]) == whole
        run_invert(job)
    assert len(Table(store, job.dataset, "latents").read(statuses=["kept"])) == 5
