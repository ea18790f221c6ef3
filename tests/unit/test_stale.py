"""What is stale, why and at what cost; read from the records alone."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pytest

from sdflow_core.records.changes import changes
from sdflow_core.records.costs import seconds_a_row
from sdflow_core.records.keys import recipe_document
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.stale import Staleness, stale
from sdflow_core.records.store import Store
from sdflow_core.records.why import why
from sdflow_core.weights.model_store import Bundle, Bundles
from tests.edited import EDITOR, MODELS, consent_again, make_edits

BUNDLE = Bundle(
    generator="b" * 64,
    encoder="c" * 64,
    labeller="a" * 64,
    detector="d" * 64,
    editor=EDITOR,
    template_scale=0.7,
    resolution=64,
    attributes=("smiling",),
)


def documents(**models: str) -> dict[str, Any]:
    """Recipes as `tests.edited` makes them, with some models exchanged."""
    return {
        step: recipe_document(step, 1, {"of": step}, {k: models.get(k, v) for k, v in kinds.items()})
        for step, kinds in MODELS.items()
    }


def look(store: Store, wanted: dict[str, Any], editor: str | None = EDITOR, **more: Any) -> Staleness:
    return stale(store, "people", wanted, BUNDLE.model_copy(update={"editor": editor}), **more)


def counts(found: Staleness) -> dict[str, tuple[int, int, int, int]]:
    return {s.step: (s.wanted, s.held, s.stale, s.new) for s in found.steps}


def test_nothing_is_stale_under_the_recipes_that_made_it(store: Store) -> None:
    make_edits(store, 3)
    found = look(store, documents())
    assert counts(found) == {
        "ingest": (4, 4, 0, 0),
        "invert": (3, 3, 0, 0),
        "label": (3, 3, 0, 0),
        "train": (1, 1, 0, 0),
        "edit": (3, 3, 0, 0),
    }
    assert not found.due and not found.edit_runs and "Nothing is stale." in found.text


def test_another_encoder_makes_latents_editor_and_edits_stale_but_no_label(store: Store) -> None:
    made = make_edits(store, 3)
    found = look(store, documents(encoder="7" * 64, editor=""), editor=None)
    assert counts(found)["ingest"] == (4, 4, 0, 0)
    assert counts(found)["invert"] == (3, 0, 3, 0)
    assert counts(found)["label"] == (3, 3, 0, 0)
    assert counts(found)["edit"] == (3, 0, 3, 0)
    assert found.step("invert").reasons[0].changes == ("encoder changed cccccccccccc -> 777777777777",)
    assert found.edit_runs == {made.edit_run: 3}
    assert found.due and "encoder changed" in found.text and "sdflow refresh people" in found.text


def test_another_labeller_touches_no_latent(store: Store) -> None:
    make_edits(store, 2)
    found = look(store, documents(labeller="7" * 64))
    assert counts(found)["invert"] == (2, 2, 0, 0)
    assert counts(found)["label"] == (2, 0, 2, 0)
    assert found.step("edit").reasons[0].changes == ("labeller changed aaaaaaaaaaaa -> 777777777777",)


def test_another_detector_makes_everything_below_it_stale(store: Store) -> None:
    make_edits(store, 2)
    found = look(store, documents(detector="7" * 64))
    assert counts(found)["ingest"] == (3, 0, 3, 0)
    assert counts(found)["invert"] == (2, 0, 2, 0) and counts(found)["label"] == (2, 0, 2, 0)
    for step in ("invert", "label", "edit"):
        assert "detector changed" in found.step(step).reasons[0].changes[0], step


@pytest.mark.parametrize("step", ["invert", "label"])
def test_a_changed_version_or_config_makes_that_step_stale(step: str, store: Store) -> None:
    make_edits(store, 2)
    wanted = documents()
    for change in ({"version": 2}, {"config": {"of": "another"}}):
        found = look(store, {**wanted, step: {**wanted[step], **change}})
        assert [s.step for s in found.steps if s.stale and s.step in ("ingest", "invert", "label")] == [step]
        assert found.due
    assert (
        "config of invert -> another"
        in look(store, {**wanted, "invert": {**wanted["invert"], "config": {"of": "another"}}}).text
    )


def test_an_open_config_never_makes_edits_stale(store: Store) -> None:
    make_edits(store, 2)
    wanted = documents()
    other = {**wanted["edit"], "config": {"of": "another request"}}
    assert look(store, {**wanted, "edit": other}).step("edit").stale == 2
    assert look(store, {**wanted, "edit": {**other, "config": None}}).step("edit").stale == 0


def test_a_consent_that_ended_asks_for_no_rows(store: Store) -> None:
    made = make_edits(store, 3)
    consent_again(store, made, 0, expires="2020-01-01")
    found = look(store, documents(encoder="7" * 64), today=date(2026, 1, 1))
    assert found.step("invert").wanted == 2
    assert look(store, documents(encoder="7" * 64), today=date(2019, 1, 1)).step("invert").wanted == 3


def test_cost_comes_from_what_runs_took(store: Store) -> None:
    make_edits(store, 3)
    taken = seconds_a_row(store, "people")
    assert set(taken) == {"ingest", "invert", "label", "train", "edit"}
    events = {event["eventType"]: event["eventTime"] for event in Lineage(store).events("run-invert")}
    seconds = datetime.fromisoformat(events["COMPLETE"]) - datetime.fromisoformat(events["START"])
    assert taken["invert"] == pytest.approx(seconds.total_seconds() / 3)
    assert "not measured yet" not in look(store, documents(encoder="7" * 64)).text
    for key in list(store.list("lineage/run-invert/")):
        store.delete(key)
    found = look(store, documents(encoder="7" * 64))
    assert found.step("invert").seconds is None and found.seconds is None
    assert "time: not measured yet" in found.text


def test_why_names_the_bundle_that_made_a_row_stale(store: Store) -> None:
    made = make_edits(store, 2)
    bundles = Bundles(store)
    bundles.promote(BUNDLE, "ann", "")
    second = BUNDLE.model_copy(update={"encoder": "7" * 64})
    third = second.model_copy(update={"judge": "8" * 64})
    bundles.promote(second, "ann", "")
    bundles.promote(third, "ann", "")
    wanted = documents(encoder="7" * 64)
    text = why(store, made.rows["latents"], wanted, third).text
    assert (
        f"It is stale since bundle {second.digest[:12]}: encoder changed cccccccccccc -> 777777777777."
        in text
    )
    edit = why(store, made.edit_ids[0], wanted, third)
    assert edit.stale.startswith("The row of latents that it was made from is stale since bundle")
    assert why(store, made.rows["latents"], documents(), BUNDLE).stale == ""
    assert why(store, made.rows["latents"]).stale == ""


def test_changes_of_an_unknown_recipe() -> None:
    assert changes(None, documents()["edit"]) == ("its recipe is not known here",)
