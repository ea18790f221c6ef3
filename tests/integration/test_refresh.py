"""Another encoder is promoted: what is stale, what is refused, what is computed, and the way back.

On a real Prefect server, with encoders that were really trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prefect.testing.utilities import prefect_test_harness

from sdflow_core.records.errors import ContractError
from sdflow_core.records.journal import Journal
from sdflow_core.records.refreshes import Refreshes, RefreshPolicy, pause, resume
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table, wplus_numpy
from sdflow_core.weights.model_store import Bundle, Bundles, ModelStore
from tests.encoders import BAD, GOOD, promote_encoder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL: dict[str, Any] = {"training": {"steps": 4, "checkpoint_every": 2}, "prior_samples": 64}
# Editors of four steps are chance; only the tests about them bound them.
POLICY = RefreshPolicy(
    canary_rows=8, editor_rows=2, max_accuracy_loss=1.0, max_preservation_loss=1.0, max_edit_identity_loss=2.0
)
FACES = 10


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a dataset and an editor trained on it."""
    from flows.ingest import ingest
    from flows.invert import invert
    from flows.label import label
    from flows.train import train
    from tasks.demo import install_models, make_people
    from tasks.step import Job

    path = tmp_path_factory.mktemp("made") / "store"
    job = Job(store=str(path), dataset="demo", parent="test")
    folder = make_people(install_models(job), 8)
    assert ingest("demo", folder.photos, folder.consent, str(path))["kept"] == FACES + 1
    for story in (invert, label):
        assert story("demo", str(path))["new"] == FACES
    train("demo", SMALL, str(path))
    return path


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Store:
    """A copy of it."""
    return open_store(str(shutil.copytree(made, tmp_path / "copy")))


def in_force(store: Store) -> Bundle:
    bundle = Bundles(store).current()
    assert bundle is not None
    return bundle


def refs(store: Store, *, of: Bundle) -> dict[str, str]:
    """Digests of what a dataset holds under a bundle's recipes."""
    from tasks import recipes

    made = {
        "sources": recipes.ingest,
        "faces": recipes.ingest,
        "latents": recipes.invert,
        "labels": recipes.label,
    }
    return {name: Table(store, "demo", name).ref(recipe(of).key).digest for name, recipe in made.items()}


def calls() -> int:
    from tasks.runtime import CALLS

    return sum(CALLS.values())


def run(store: Store, policy: RefreshPolicy = POLICY, **more: Any) -> dict[str, Any]:
    from flows.refresh import refresh

    return refresh("demo", policy, store=store.uri, **more)


def test_a_promoted_encoder_is_a_candidate_until_it_is_refreshed(copy: Store) -> None:
    from tasks.service import bundle_in_service, refresh_due, staleness

    old = in_force(copy)
    assert refresh_due(copy) == [] and bundle_in_service(copy, "demo") == old
    new = promote_encoder(copy, GOOD)
    assert refresh_due(copy) == ["demo"] and bundle_in_service(copy, "demo") == old
    found = staleness(copy, "demo", new)
    assert (found.step("invert").stale, found.step("invert").new) == (FACES, 0)
    assert found.step("label").stale == 0 == found.step("ingest").stale and found.step("train").stale == 1
    assert "encoder changed" in found.text and found.seconds is not None
    assert found.step("invert").reasons[0].since == new.digest


def test_a_worse_encoder_is_refused_and_one_rollback_leaves_nothing_to_do(copy: Store) -> None:
    from tasks.service import bundle_in_service, refresh_due, staleness

    old, before = in_force(copy), refs(copy, of=in_force(copy))
    new = promote_encoder(copy, BAD)
    facts = run(copy)
    assert (facts["state"], facts["gate"]) == ("waits", "canary")
    figures = facts["canary"]
    assert figures["new"]["psnr_db"] < figures["old"]["psnr_db"] - 3
    assert any("reconstruction" in text and "dB" in text for text in facts["complaints"])
    assert "--go --by" in facts["todo"] and "rollback" in facts["todo"]
    with Image.open(facts["sheet"]) as sheet:
        assert sheet.width > 800
    assert Table(copy, "demo", "latents").ref().rows == FACES, "nothing was computed but the sample"
    assert bundle_in_service(copy, "demo") == old and in_force(copy) == new
    told, counted = run(copy), calls()
    assert told["complaints"] == facts["complaints"] and calls() == counted
    Bundles(copy).rollback("ann", "worse")
    assert in_force(copy) == old and refresh_due(copy) == [] and refs(copy, of=old) == before
    assert not staleness(copy, "demo", old).due
    assert run(copy)["state"] == "current" and calls() == counted


def test_a_good_encoder_is_taken_over_and_taken_back_without_a_model_call(copy: Store) -> None:
    from flows.edit import edit
    from flows.invert import invert
    from flows.label import label
    from sdflow_core.method.editing import load_editor
    from tasks import recipes
    from tasks.service import bundle_in_service, refresh_due, staleness

    old, before = in_force(copy), refs(copy, of=in_force(copy))
    codes = Table(copy, "demo", "latents").read(recipe=recipes.invert(old).key)
    labels = Table(copy, "demo", "labels").ref()
    promote_encoder(copy, GOOD)
    facts = run(copy)
    assert facts["state"] == "done" and facts["opened_by"] == "policy" and facts["rows"] == FACES
    assert facts["canary"]["new"]["psnr_db"] >= facts["canary"]["old"]["psnr_db"] - 0.5
    assert facts["canary"]["latent_drift_mean"] > 0.05
    new = in_force(copy)
    assert new == bundle_in_service(copy, "demo") and new.editor not in (None, old.editor)
    assert load_editor(ModelStore(copy).weights(str(new.editor))).encoder_digest == new.encoder != old.encoder
    latents = Table(copy, "demo", "latents")
    assert latents.ref(recipes.invert(new).key).rows == FACES and latents.ref().rows == 2 * FACES
    assert Table(copy, "demo", "labels").ref().digest == labels.digest
    assert not staleness(copy, "demo", new).due and run(copy)["state"] == "current"
    assert edit("demo", [{"smiling": 0.9}], dry_run=True, store=copy.uri)["rows"] == FACES + 1
    # old versions stay readable
    kept = latents.read(recipe=recipes.invert(old).key)
    assert np.array_equal(wplus_numpy(kept, "w_plus"), wplus_numpy(codes, "w_plus"))
    counted = calls()
    Bundles(copy).rollback("ann", "the old one was nicer")
    assert in_force(copy) == old == bundle_in_service(copy, "demo")
    assert refs(copy, of=old) == before and refresh_due(copy) == []
    assert [story("demo", copy.uri)["new"] for story in (invert, label)] == [0, 0]
    assert edit("demo", [{"smiling": 0.9}], dry_run=True, store=copy.uri)["rows"] == FACES + 1
    assert calls() == counted


def test_a_person_opens_each_gate_for_what_could_be_seen(copy: Store) -> None:
    from tasks.service import bundle_in_service

    old = in_force(copy)
    promote_encoder(copy, GOOD)
    asks = POLICY.model_copy(update={"ask": "always"})
    assert run(copy, asks)["gate"] == "canary"
    with pytest.raises(ContractError, match="--by NAME"):
        run(copy, asks, go=True)
    facts = run(copy, asks, go=True, by="ann")
    assert (facts["state"], facts["gate"]) == ("waits", "editor"), "nobody has seen these figures yet"
    assert facts["editors"]["old"]["n"] == facts["editors"]["new"]["n"] == 2 * 4
    assert bundle_in_service(copy, "demo") == old
    assert run(copy, asks)["state"] == "waits"
    counted = calls()
    assert run(copy, asks, go=True, by="bob")["state"] == "done" and calls() == counted
    said = [
        (e.payload["gate"], e.payload["by"]) for e in Journal(copy, "refreshes").entries() if e.kind == "open"
    ]
    assert said == [("canary", "ann"), ("editor", "bob")]
    assert Bundles(copy).history()[-1].payload["by"] == "bob"


def test_a_pause_ends_a_run_between_shards_and_a_resume_finishes_it(
    copy: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.refresh as steps
    from tasks import recipes

    monkeypatch.setenv("SDFLOW_SHARD_ROWS", "3")
    new = promote_encoder(copy, GOOD)
    each_shard = steps.each_shard

    def then_pause(*given: Any) -> Any:
        done = each_shard(*given)
        pause(copy, "demo", "ann")
        return done

    with monkeypatch.context() as patch:
        patch.setattr(steps, "each_shard", then_pause)
        assert run(copy)["state"] == "paused"
    of = recipes.invert(new).key
    assert Table(copy, "demo", "latents").ref(of).rows == 3
    assert run(copy)["state"] == "paused" and Table(copy, "demo", "latents").ref(of).rows == 3
    assert resume(copy, "demo")
    facts = run(copy)
    assert facts["state"] == "done" and facts["rows"] == FACES - 3
    assert Table(copy, "demo", "latents").ref(of).rows == FACES


def test_another_template_is_cut_again_from_the_sources(copy: Store) -> None:
    from tasks import recipes
    from tasks.service import staleness

    old = in_force(copy)
    new = old.model_copy(update={"template_scale": 0.72})
    Bundles(copy).promote(new, "test", "a little more around the face")
    copy.delete("demo/photos/person-0003.jpg")
    bounds = {"max_psnr_loss_db": 20.0, "min_identity": -1.0, "max_identity_loss": 2.0}
    bounds |= {"min_label_agreement": 0.0, "min_faces_found": 0.5}
    loose = POLICY.model_copy(update=bounds)
    assert staleness(copy, "demo", new).step("ingest").stale == 18
    facts = run(copy, loose)
    assert facts["state"] == "done" and facts["canary"]["faces_found"] < 1
    rows = Table(copy, "demo", "sources").read(recipe=recipes.ingest(new).key).to_pylist()
    status = {row["name"]: (row["status"], row["reason"]) for row in rows}
    assert len(status) == 18 and status["person-0003.jpg"][0] == "failed"
    before = Table(copy, "demo", "sources").read(recipe=recipes.ingest(old).key).to_pylist()
    same = {row["name"]: (row["status"], row["reason"]) for row in before}
    del same["person-0003.jpg"], status["person-0003.jpg"]
    assert status == same
    assert Table(copy, "demo", "latents").ref(recipes.invert(new).key).rows == 2 * FACES - 1
    assert run(copy)["state"] == "current"


def test_an_event_for_a_bundle_that_is_out_of_force_starts_nothing(copy: Store) -> None:
    from flows.refresh import refresh_due_datasets

    old = in_force(copy)
    new = promote_encoder(copy, GOOD)
    assert refresh_due_datasets(POLICY, copy.uri, old.digest) == []
    assert not Refreshes(copy).finished("demo", new.digest)
    assert [facts["state"] for facts in refresh_due_datasets(POLICY, copy.uri, new.digest)] == ["done"]
    assert Refreshes(copy).finished("demo", new.digest)
    assert refresh_due_datasets(POLICY, copy.uri) == []


def test_another_promotion_meanwhile_is_not_overwritten(copy: Store) -> None:
    from tasks.canary import RefreshPlan
    from tasks.refresh import finish_refresh
    from tasks.runtime import pin_bundle
    from tasks.step import Job

    old = in_force(copy)
    new = promote_encoder(copy, GOOD)
    pinned = pin_bundle(copy).digest
    Bundles(copy).promote(old.model_copy(update={"judge": old.labeller}), "bob", "in between")
    plan = RefreshPlan(
        refresh="0" * 12, old=old.digest, new=pinned, due=True, paused=False, train=True, rows=0
    )
    job = Job(store=copy.uri, dataset="demo", bundle=pinned, parent="test")
    with pytest.raises(ContractError, match="another bundle"):
        finish_refresh(job, plan, "e" * 64, "ann")
    assert in_force(copy).judge == old.labeller and not Refreshes(copy).finished("demo", new.digest)


def test_the_dataset_that_taught_the_editor_teaches_the_new_one(copy: Store) -> None:
    from flows.ingest import ingest
    from flows.invert import invert
    from flows.label import label
    from tasks.service import bundle_in_service, refresh_due

    ingest("all", "store:demo/photos", "store:demo/consent.csv", copy.uri)
    invert("all", copy.uri)
    label("all", copy.uri)
    old, new = in_force(copy), promote_encoder(copy, GOOD)
    assert refresh_due(copy) == ["demo", "all"], "the teacher first"

    def refreshed(dataset: str) -> dict[str, Any]:
        from flows.refresh import refresh

        return refresh(dataset, POLICY, store=copy.uri)

    facts = refreshed("all")
    assert (facts["state"], facts["rows"], facts["editor"]) == ("computed", FACES, None)
    assert in_force(copy) == new and bundle_in_service(copy, "all") == old, "no editor, no service"
    assert refreshed("demo")["state"] == "done"
    assert bundle_in_service(copy, "all") == bundle_in_service(copy, "demo") == in_force(copy) != new
    assert refresh_due(copy) == []


def test_another_labeller_is_in_service_after_its_refresh_and_a_judge_at_once(copy: Store) -> None:
    from sdflow_core.faces.checkpoint import load_model, save_model
    from tasks.service import bundle_in_service, refresh_due

    old, models = in_force(copy), ModelStore(copy)
    judged = old.model_copy(update={"judge": models.add("judge", b"another judge", {})})
    Bundles(copy).promote(judged, "test", "")
    assert bundle_in_service(copy, "demo") == judged and refresh_due(copy) == []
    Bundles(copy).rollback("test", "")
    labeller = load_model(models.weights(str(old.labeller)))
    labeller.head.bias.add_(0.01)
    new = old.model_copy(update={"labeller": models.add("labeller", save_model(labeller), {})})
    Bundles(copy).promote(new, "test", "")
    assert bundle_in_service(copy, "demo") == old and refresh_due(copy) == ["demo"]
    latents = Table(copy, "demo", "latents").ref().digest
    facts = run(copy)
    assert (facts["state"], facts["rows"]) == ("done", FACES) and facts["canary"]["label_agreement"] > 0.9
    assert facts["canary"]["latent_drift_mean"] == 0.0
    assert Table(copy, "demo", "latents").ref().digest == latents
    assert bundle_in_service(copy, "demo") == in_force(copy) and in_force(copy).labeller == new.labeller
    assert in_force(copy).editor != old.editor, "it learned from the new labels"
