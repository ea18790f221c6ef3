"""Gates, policies, pauses; and the place that an editor takes in a bundle."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sdflow_core.records.errors import ContractError
from sdflow_core.records.journal import Journal
from sdflow_core.records.refreshes import (
    Refreshes,
    RefreshPolicy,
    canary_complaints,
    editor_complaints,
    is_paused,
    pause,
    refresh_id,
    resume,
)
from sdflow_core.records.store import Store
from sdflow_core.weights.model_store import Bundle, Bundles

SAME = {"psnr_db": 24.0, "psnr_db_p5": 20.0, "identity": 0.6, "identity_p5": 0.4}
CANARY: dict[str, Any] = {
    "old": SAME,
    "new": SAME,
    "label_agreement": 1.0,
    "reconstruction_label_agreement": 1.0,
    "faces_found": 1.0,
    "latent_drift_mean": 0.4,
}
EDITOR = {"judge_accuracy": 0.9, "preservation": 0.9, "identity": 0.7}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"new": {**SAME, "psnr_db": 23.4}}, "a loss of at most 0.5 dB"),
        ({"new": {**SAME, "psnr_db": float("nan")}}, "reconstruction"),
        ({"new": {**SAME, "identity": 0.1}}, "at least 0.2"),
        ({"new": {**SAME, "identity": 0.54}}, "a loss of at most 0.05"),
        ({"label_agreement": 0.89}, "agree on crops"),
        ({"reconstruction_label_agreement": 0.5}, "agree on reconstructions"),
        ({"faces_found": 0.9}, "found again"),
    ],
)
def test_each_bound_is_held_by_itself(change: dict[str, Any], words: str) -> None:
    assert canary_complaints(CANARY, RefreshPolicy()) == []
    said = canary_complaints({**CANARY, **change}, RefreshPolicy())
    assert any(words in text for text in said)


def test_drift_counts_only_where_it_is_bounded() -> None:
    assert canary_complaints(CANARY, RefreshPolicy(max_latent_drift=0.5)) == []
    assert "0.4, at most 0.3" in canary_complaints(CANARY, RefreshPolicy(max_latent_drift=0.3))[0]
    other_shape = {**CANARY, "latent_drift_mean": None}
    assert "another shape" in canary_complaints(other_shape, RefreshPolicy(max_latent_drift=0.5))[0]


def test_editors() -> None:
    assert editor_complaints({"old": None, "new": EDITOR}, RefreshPolicy()) == []
    assert editor_complaints({"old": EDITOR, "new": EDITOR}, RefreshPolicy()) == []
    for name in EDITOR:
        worse = {**EDITOR, name: EDITOR[name] - 0.06}
        assert len(editor_complaints({"old": EDITOR, "new": worse}, RefreshPolicy())) == 1, name
        assert editor_complaints({"old": worse, "new": EDITOR}, RefreshPolicy()) == [], name


def test_a_policy_refuses_unknown_and_impossible_bounds() -> None:
    for wrong in ({"canary_rows": 1}, {"min_label_agreement": 1.5}, {"max_psnr_los": 1.0}, {"ask": "never"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            RefreshPolicy.model_validate(wrong)


def test_a_gate_is_opened_once_and_for_one_set_of_figures(store: Store) -> None:
    refreshes = Refreshes(store)
    assert refreshes.opened("r", "canary", "f1") is None
    first = refreshes.open_gate("r", "people", "canary", "f1", "ann")
    assert refreshes.open_gate("r", "people", "canary", "f1", "bob") == first
    assert refreshes.opened("r", "canary", "f1") == first
    assert refreshes.opened("r", "canary", "f2") is None and refreshes.opened("r", "editor", "f1") is None
    refreshes.finish("r", "people", "models", "bundle")
    refreshes.finish("again", "people", "models", "bundle")
    assert refreshes.finished("people", "models") and not refreshes.finished("others", "models")
    assert Journal(store, "refreshes").verify() == 2


def test_the_id_names_dataset_models_and_sample() -> None:
    policy = RefreshPolicy()
    ids = {
        refresh_id("a", "old", "new", policy),
        refresh_id("b", "old", "new", policy),
        refresh_id("a", "old", "newer", policy),
        refresh_id("a", "old", "new", policy.model_copy(update={"canary_rows": 8})),
    }
    assert len(ids) == 4
    bound = policy.model_copy(update={"max_psnr_loss_db": 9.0})
    assert refresh_id("a", "old", "new", bound) in ids, "another bound asks for no other figures"


def test_pause_and_resume(store: Store) -> None:
    with pytest.raises(ContractError, match="--by"):
        pause(store, "people", " ")
    assert not is_paused(store, "people")
    pause(store, "people", "ann")
    assert is_paused(store, "people") and not is_paused(store, "others")
    assert resume(store, "people") and not resume(store, "people") and not is_paused(store, "people")


def test_an_editor_completes_its_bundle_and_one_rollback_goes_behind_both(store: Store) -> None:
    def bundle(encoder: str, editor: str | None) -> Bundle:
        return Bundle(encoder=encoder, editor=editor, template_scale=0.7, resolution=64, attributes=("a",))

    bundles = Bundles(store)
    with pytest.raises(ContractError, match="another bundle"):
        bundles.complete(bundle("e1", "x"), "ann", "")
    bundles.promote(bundle("e1", "x"), "ann", "")
    bundles.promote(bundle("e2", None), "ann", "")
    first = bundles.complete(bundle("e2", "y"), "ann", "")
    assert bundles.complete(bundle("e2", "y"), "bob", "") == first
    with pytest.raises(ContractError, match="another bundle"):
        bundles.complete(bundle("e1", "y"), "ann", "")
    assert bundles.standing() == [bundle("e1", "x"), bundle("e2", "y")]
    bundles.rollback("ann", "")
    assert bundles.current() == bundle("e1", "x")
    assert [entry.kind for entry in bundles.history()] == ["promote", "promote", "complete", "rollback"]
