"""Shards of aimed edits: several attributes, changes and flips of one face, with the crop's residual."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sdflow_core.faces.pixels import read_png
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table, wplus_column, wplus_numpy
from sdflow_core.weights.model_store import ModelStore
from tasks.latents import LOST_CROP
from tasks.runtime import pin_bundle
from tasks.step import Job
from tests.shards import CONSENT, body, job_for, run_ingest, run_invert, with_models

REQUESTS = [{"smiling": "+0.2", "young": 0.5}, {"smiling": "flip"}]


@pytest.fixture(scope="module")
def inverted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three people's codes."""
    from tests.nights import write_people

    folder = tmp_path_factory.mktemp("inverted")
    store = open_store(str(folder / "store"))
    bundle = with_models(store)
    write_people(store, bundle, folder / "photos", 0, 3)
    (folder / "all.csv").write_text(CONSENT)
    job = job_for(store, bundle)
    run_ingest(job, str(folder / "photos"), folder / "all.csv")
    run_invert(job)
    return folder / "store"


@pytest.fixture
def people(inverted: Path, tmp_path: Path) -> tuple[Store, Job]:
    """A copy of it, and what its steps are told."""
    store = open_store(str(shutil.copytree(inverted, tmp_path / "copy")))
    return store, job_for(store, pin_bundle(store).digest)


@pytest.mark.slow
def test_the_residual_of_the_crop_is_carried_over_and_a_lost_crop_costs_its_row(
    people: tuple[Store, Job],
) -> None:
    from tasks.edit import edit_shard
    from tasks.edit_plan import edit_config, plan_edit, variants_of

    store, job = people
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


def test_a_latent_that_is_not_finite_is_a_row_with_a_reason_and_never_a_picture(
    people: tuple[Store, Job],
) -> None:
    from tasks.edit import edit_shard
    from tasks.edit_plan import edit_config, plan_edit, variants_of

    store, job = people
    table = Table(store, "people", "latents")
    (shard,) = list(store.list("private/datasets/people/latents/shards/"))
    with store.open_input(shard) as file:
        latents = pq.read_table(file)
    codes = wplus_numpy(latents, "w_plus").copy()
    codes[1, 3, 7] = np.nan
    place = latents.schema.get_field_index("w_plus")
    buffer = io.BytesIO()
    damaged = latents.set_column(place, latents.schema.field(place), wplus_column(codes))
    pq.write_table(damaged, buffer, write_page_checksum=True)
    store.put(shard, buffer.getvalue())
    assert table.read().num_rows == 3

    config = edit_config({"tries": 2})
    plan = body(plan_edit)(job, variants_of([{"smiling": "flip"}]), config)
    for shard in plan.shards.shards:
        body(edit_shard)(job, shard, config)
    rows = {row["inputs"][0]: row for row in Table(store, "people", "edits").read().to_pylist()}
    assert len(rows) == 3
    for number, key in enumerate(latents["row_key"].to_pylist()):
        row = rows[key]
        if number == 1:
            assert row["status"] == "dropped" and "not finite" in row["reason"]
            assert row["output"] == row["before"] == row["pixel_sha256"] == ""
        else:
            assert row["status"] in ("waiting", "gated") and np.isfinite(row["s_after"]).all()
            assert np.isfinite([row["strength"], row["other_change"], row["identity"]]).all()
    wrong = str(rows[latents["row_key"][1].as_py()]["row_key"])
    pictures = {key.rpartition("/")[2] for key in store.list("private/edits/")}
    assert len(pictures) == 4 and not [name for name in pictures if wrong in name]


@pytest.mark.slow
def test_the_published_training_is_asked_for_by_name_and_its_recipe_is_kept(
    people: tuple[Store, Job],
) -> None:
    from sdflow_core.method.editing import FlowEditor, load_editor
    from sdflow_core.method.paper import PaperFlow
    from sdflow_core.records.lineage import load_recipe
    from tasks.train import train_editor_step, training_config

    store, job = people
    quick = {"method": "euler", "steps": 1}
    training = {"steps": 2, "density_solver": quick, "flow": {"width": 8, "depth": 2, "solver": quick}}
    config = training_config({"config": "paper", "training": training, "prior_samples": 16})
    made = body(train_editor_step)(job, config)
    editor = load_editor(ModelStore(store).weights(made.digest))
    assert isinstance(editor, FlowEditor) and isinstance(editor.flow, PaperFlow)
    assert not editor.config.corrected, "as published"
    card = ModelStore(store).card(made.digest)
    assert set(card["final_losses"]) >= {"density", "consistency", "closeness"}
    kept = load_recipe(store, card["recipe"])["config"]["training"]
    assert (kept["flow"]["kind"], kept["batch"], kept["learning_rate"], kept["steps"]) == (
        "paper",
        8,
        1e-4,
        2,
    )
    assert body(train_editor_step)(job, config) == made, "the same values are the same editor"
