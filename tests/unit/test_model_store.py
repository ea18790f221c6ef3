"""Models by digest, promoted and taken back, licences accepted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sdflow_core.records.errors import ContractError, CorruptError, NotFoundError
from sdflow_core.records.store import Store
from sdflow_core.weights.model_store import Bundle, Bundles, Licences, ModelStore


def bundle(generator: str = "g1") -> Bundle:
    return Bundle(generator=generator, template_scale=0.7, resolution=64, attributes=("smiling",))


def test_models_are_kept_by_digest(store: Store) -> None:
    models = ModelStore(store)
    digest = models.add("generator", b"weights", {"licence": "x"})
    assert (
        digest
        == hashlib.sha256(b"weights").hexdigest()
        == models.add("generator", b"weights", {"licence": "y"})
    )
    assert models.weights(digest) == b"weights"
    assert models.card(digest) == {"licence": "x", "kind": "generator", "digest": digest, "size_bytes": 7}
    other = models.add("encoder", b"more", {})
    assert [card["digest"] for card in models.list()] == [other, digest]


def test_unknown_and_changed_models(store: Store) -> None:
    models = ModelStore(store)
    for ask in (models.weights, models.card):
        with pytest.raises(NotFoundError):
            ask("0" * 64)
    digest = models.add("generator", b"weights", {})
    Path(store.url(f"models/{digest}/weights.bin")).write_bytes(b"other")
    with pytest.raises(CorruptError):
        models.weights(digest)


def test_a_model_added_halfway_can_be_added_again(store: Store) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    store.create(f"models/{digest}/weights.bin", b"weights")
    models = ModelStore(store)
    assert models.list() == []
    models.add("generator", b"weights", {})
    assert len(models.list()) == 1


def test_promote_and_roll_back(store: Store) -> None:
    bundles = Bundles(store)
    assert bundles.current() is None
    for name in ("g1", "g2", "g3"):
        bundles.promote(bundle(name), "ann", "better")
    assert bundles.current() == bundle("g3")
    bundles.rollback("ann", "worse")
    assert bundles.current() == bundle("g2")
    bundles.rollback("ann", "worse too")
    assert bundles.current() == bundle("g1")
    with pytest.raises(ContractError, match="no earlier bundle"):
        bundles.rollback("ann", "again")
    bundles.promote(bundle("g4"), "ann", "new")
    assert bundles.current() == bundle("g4")
    assert [entry.kind for entry in bundles.history()] == ["promote"] * 3 + ["rollback"] * 2 + ["promote"]


def test_promoting_the_current_bundle_again_adds_nothing(store: Store) -> None:
    bundles = Bundles(store)
    first = bundles.promote(bundle(), "ann", "x")
    assert bundles.promote(bundle(), "bob", "y") == first


def test_bundles_are_known_by_content() -> None:
    assert bundle().digest == bundle().digest != bundle("g2").digest


def test_licences(store: Store) -> None:
    licences = Licences(store)
    assert not licences.accepted("research-only")
    first = licences.accept("research-only", "ann", "for the demo")
    assert licences.accept("research-only", "bob", "again") == first
    assert licences.accepted("research-only") and not licences.accepted("other")
