"""Shards of aimed edits: several attributes, changes and flips of one face, with the crop's residual."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdflow_core.faces.pixels import read_png
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
from tasks.latents import LOST_CROP
from tests.shards import CONSENT, body, job_for, run_ingest, run_invert, with_models

REQUESTS = [{"smiling": "+0.2", "young": 0.5}, {"smiling": "flip"}]


@pytest.mark.slow
def test_the_residual_of_the_crop_is_carried_over_and_a_lost_crop_costs_its_row(tmp_path: Path) -> None:
    from tasks.edit import edit_shard
    from tasks.edit_plan import edit_config, plan_edit, variants_of
    from tests.nights import write_people

    store = open_store(str(tmp_path / "store"))
    bundle = with_models(store)
    job = job_for(store, bundle)
    write_people(store, bundle, tmp_path / "photos", 0, 3)
    (tmp_path / "all.csv").write_text(CONSENT)
    run_ingest(job, str(tmp_path / "photos"), tmp_path / "all.csv")
    run_invert(job)
    faces = {row["face_id"]: row for row in Table(store, "people", "faces").read().to_pylist()}
    lost = sorted(faces)[0]
    store.delete(faces[lost]["crop"])

    config = edit_config({"carry_residual": True, "tries": 3, "furthest": 12.0})
    plan = body(plan_edit)(job, variants_of(REQUESTS), config)
    for shard in plan.shards.shards:
        body(edit_shard)(job, shard, config)
    rows = Table(store, "people", "edits").read().to_pylist()
    assert len(rows) == 6
    for row in rows:
        if row["face_id"] == lost:
            assert (row["status"], row["reason"], row["output"]) == ("failed", LOST_CROP, "")
            continue
        crop = read_png(store.read(faces[row["face_id"]]["crop"]))
        before, after = (read_png(store.read(row[name])) for name in ("before", "output"))
        assert np.array_equal(before, crop), "the edit starts from the source, not from its reconstruction"
        assert row["status"] in ("waiting", "gated") and row["tries"] <= 5
        assert len(row["s_asked"]) == len(row["s_before"])
        assert row["strength"] > 0 or np.array_equal(after, crop)
    assert {row["request"] for row in rows} == {'{"smiling":"+0.2","young":0.5}', '{"smiling":"flip"}'}
    # what failed is tried again, what is held is not
    again = body(plan_edit)(job, variants_of(REQUESTS), config)
    assert again.shards.wanted - again.shards.held == 2
