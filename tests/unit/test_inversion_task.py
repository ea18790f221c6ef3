"""Codes of a quality in the records: beside the encoder's, with figures of their own, asked for by edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdflow_core.faces import qualities
from sdflow_core.records.errors import ContractError
from sdflow_core.records.stale import stale
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table, wplus_numpy
from tasks import recipes
from tasks.inversion_costs import measured_costs
from tasks.latents import invert_shard, plan_invert
from tasks.runtime import load_bundle
from tasks.step import Job
from tests.shards import CONSENT, job_for, run_ingest, run_invert, with_models

pytestmark = pytest.mark.weights

FACES = 3


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qualities, "QUALITIES", {"fast": 0, "good": 2, "best": 3})


def _invert(job: Job, quality: str) -> Any:
    plan = plan_invert.fn(job, quality)
    for shard in plan.shards:
        invert_shard.fn(job, shard, quality)
    return plan


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Job]:
    from PIL import Image

    from sdflow_core.faces.networks import Networks, to_uint8
    from sdflow_core.weights.model_store import ModelStore
    from tasks.demo import photograph

    folder = tmp_path_factory.mktemp("inversion")
    store = open_store(str(folder / "store"))
    job = job_for(store, with_models(store))
    networks = Networks(ModelStore(store), load_bundle(store, job.bundle))
    codes = networks.prior.sample(FACES, torch.Generator().manual_seed(4), truncation=0.7)
    photos = folder / "photos"
    photos.mkdir()
    for number, face in enumerate(to_uint8(networks.render(codes))):
        Image.fromarray(photograph(face)).save(photos / f"{number}.jpg", quality=90)
    (folder / "consent.csv").write_text(CONSENT)
    run_ingest(job, str(photos), folder / "consent.csv")
    run_invert(job)
    return store, job


def _rows(store: Store, job: Job, quality: str) -> Any:
    recipe = recipes.invert(load_bundle(store, job.bundle), quality).key
    return Table(store, job.dataset, "latents").read(recipe=recipe).sort_by("face_id")


def test_refined_rows_stand_beside_the_encoders(
    ingested: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = ingested
    before = _rows(store, job, "fast")
    assert plan_invert.fn(job, "good").wanted == FACES
    _invert(job, "good")
    fast, good = _rows(store, job, "fast"), _rows(store, job, "good")
    assert fast.equals(before) and fast.num_rows == good.num_rows == FACES
    assert set(fast["row_key"].to_pylist()).isdisjoint(good["row_key"].to_pylist())
    assert fast["inputs"].equals(good["inputs"])
    given, reached = (good[name].to_numpy() for name in ("encoder_psnr_db", "reconstruction_psnr_db"))
    assert np.allclose(given, fast["reconstruction_psnr_db"].to_numpy(), atol=0.01)
    moved = good["refinement_step"].to_numpy() > 0
    assert moved.any() and np.array_equal(good["refinement_moved"].to_numpy() > 0, moved)
    assert (reached[moved] > given[moved]).all()
    assert good["refinement_steps"].to_pylist() == [2] * FACES
    assert good["refinement_note"].to_pylist() == [""] * FACES
    other = (wplus_numpy(good, "w_plus") != wplus_numpy(fast, "w_plus")).any(axis=(1, 2))
    assert np.array_equal(other, moved)
    # computed once; other steps are other rows
    assert not plan_invert.fn(job, "good").shards
    assert len(plan_invert.fn(job, "best").shards) == 1
    monkeypatch.setattr(qualities, "QUALITIES", {"fast": 0, "good": 5, "best": 3})
    assert len(plan_invert.fn(job, "good").shards) == 1


def test_the_recipe_of_fast_is_what_it_always_was(ingested: tuple[Store, Job]) -> None:
    store, job = ingested
    bundle = load_bundle(store, job.bundle)
    config = {"micro_batch": 16, "precision": "fp32", "refinement_steps": 0}
    assert recipes.invert(bundle).document["config"] == config
    assert set(recipes.invert(bundle).document["models"]) == {"encoder", "generator"}
    refined = recipes.invert(bundle, "best").document
    assert refined["config"]["refinement_steps"] == refined["config"]["refinement"]["steps"] == 3
    with pytest.raises(ContractError, match="quality"):
        recipes.invert(bundle, "perfect")


def test_what_a_run_took_is_told_for_every_quality(ingested: tuple[Store, Job]) -> None:
    store, job = ingested
    bundle = load_bundle(store, job.bundle)
    assert measured_costs(job, recipes.invert(bundle, "best").key, "best") == []
    _invert(job, "good")
    for quality, others in (("fast", {"good", "best"}), ("good", {"fast", "best"})):
        told = {
            one["quality"]: one for one in measured_costs(job, recipes.invert(bundle, quality).key, quality)
        }
        assert told[quality]["how"] == "measured"
        assert all(told[name]["how"].startswith("estimate") for name in others)
        assert (
            0 < told["fast"]["seconds_a_row"] < told["good"]["seconds_a_row"] < told["best"]["seconds_a_row"]
        )


def test_edits_start_from_the_quality_asked(ingested: tuple[Store, Job], tmp_path: Path) -> None:
    from datetime import date

    from sdflow_core.method.request import Variant
    from tasks.wanted_edits import wanted_edits

    store, job = ingested
    bundle = load_bundle(store, job.bundle)
    _invert(job, "good")

    def codes(quality: str) -> set[str]:
        variant = Variant(targets={bundle.attributes[0]: "flip"})
        day = date(2026, 1, 1)
        wanted = wanted_edits(store, job.dataset, [variant], "recipe", bundle, day, quality)
        return {item["inputs"][0] for item in wanted.items(np.arange(FACES))}

    for quality in ("fast", "good"):
        assert codes(quality) == set(_rows(store, job, quality)["row_key"].to_pylist())
    with pytest.raises(ContractError, match="no codes of quality best") as caught:
        codes("best")
    assert "--quality best" in str(caught.value)


def test_refined_codes_make_nothing_stale(ingested: tuple[Store, Job]) -> None:
    store, job = ingested
    bundle = load_bundle(store, job.bundle)
    _invert(job, "good")
    found = stale(store, job.dataset, recipes.wanted(bundle), bundle)
    assert found.step("invert").held == FACES and not found.due
