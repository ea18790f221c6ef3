"""A decision is about the very pixels that were rendered, and is never lost or silently overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from sdflow_core.faces.pixels import pixel_digest, png_bytes
from sdflow_core.records import decisions
from sdflow_core.records.decisions import decide, decisions_of
from sdflow_core.records.errors import ApprovalError, ContractError, NotFoundError, QualityGateError
from sdflow_core.records.journal import Journal
from sdflow_core.records.store import Store
from tests.edited import make_edits, picture


def test_approve_all_takes_what_waits_and_leaves_the_gated(store: Store) -> None:
    made = make_edits(store)
    latest = decide(store, made.edit_run, approve="all", who="ann", note="fine")
    assert list(latest) == made.waiting
    first = latest[made.edit_ids[0]]
    assert (first.verdict, first.who, first.identity, first.note) == ("approve", "ann", "asserted", "fine")
    assert first.pixel_sha256 == pixel_digest(picture(0))
    assert latest == decisions_of(store, made.edit_run)


def test_deciding_twice_is_deciding_once(store: Store) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", reject=[made.edit_ids[0]], who="ann")
    before = Journal(store, f"decisions/{made.edit_run}").canonical_digest()
    decide(store, made.edit_run, approve="all", reject=[made.edit_ids[0]], who="ann")
    assert Journal(store, f"decisions/{made.edit_run}").canonical_digest() == before


def test_the_latest_word_wins_and_all_does_not_take_back_a_rejection(store: Store) -> None:
    made = make_edits(store)
    first, second = made.waiting
    decide(store, made.edit_run, reject=[first], who="ann")
    latest = decide(store, made.edit_run[:6], approve="all", who="bob")
    assert (latest[first].verdict, latest[second].verdict) == ("reject", "approve")
    latest = decide(store, made.edit_run, approve=[first[:10]], who="ann")
    assert latest[first].approved


@pytest.mark.parametrize("damage", ["other pixels", "gone", "no picture"])
def test_a_picture_that_is_not_the_rendered_one_cannot_be_approved(store: Store, damage: str) -> None:
    made = make_edits(store)
    key = "private/edits/0.png"
    store.delete(key)
    if damage != "gone":
        store.put(key, png_bytes(picture(7)) if damage == "other pixels" else b"text")
    with pytest.raises(ApprovalError, match=made.edit_ids[0]):
        decide(store, made.edit_run, approve="all", who="ann")
    assert decisions_of(store, made.edit_run) == {}
    assert not decide(store, made.edit_run, reject=[made.edit_ids[0]], who="ann")[made.edit_ids[0]].approved


def test_a_gated_edit_can_be_rejected_but_not_approved(store: Store) -> None:
    made = make_edits(store)
    with pytest.raises(QualityGateError, match="identity 0.10"):
        decide(store, made.edit_run, approve=[made.edit_ids[-1]], who="ann")
    decide(store, made.edit_run, reject=[made.edit_ids[-1]], who="ann")


@pytest.mark.parametrize(
    ("kwargs", "kind", "words"),
    [
        ({"approve": "all", "who": " "}, ContractError, "needs a name"),
        ({"who": "ann"}, ContractError, "nothing to decide"),
        ({"approve": ["ffff0000"], "who": "ann"}, NotFoundError, "no such edit"),
        ({"approve": ["0"], "who": "ann"}, NotFoundError, "at least 4 digits"),
    ],
)
def test_unclear_decisions_are_refused(
    store: Store, kwargs: dict[str, Any], kind: type[Exception], words: str
) -> None:
    made = make_edits(store)
    with pytest.raises(kind, match=words):
        decide(store, made.edit_run, **kwargs)
    assert decisions_of(store, made.edit_run) == {}


def test_an_edit_on_both_lists_is_refused(store: Store) -> None:
    made = make_edits(store)
    with pytest.raises(ContractError, match="at once"):
        decide(store, made.edit_run, approve=made.waiting, reject=made.waiting[:1], who="ann")


def test_unknown_edit_runs_are_named(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no such edit run"):
        decide(store, "00000000", approve="all", who="ann")


def test_a_run_that_was_killed_cannot_be_decided(store: Store) -> None:
    made = make_edits(store)
    document = store.read(f"private/edit_runs/{made.edit_run}.json").replace(
        made.edit_ids[0].encode(), b"f" * 64
    )
    store.put(f"private/edit_runs/{made.edit_run}.json", document)
    with pytest.raises(ContractError, match="not finished"):
        decide(store, made.edit_run, approve="all", who="ann")


@pytest.mark.parametrize(("verdict", "conflict"), [("reject", True), ("approve", False)])
def test_two_people_at_once_agree_or_are_told(
    store: Store, monkeypatch: pytest.MonkeyPatch, verdict: str, conflict: bool
) -> None:
    made = make_edits(store)
    real = decisions.read_output
    done: list[str] = []

    def meanwhile(*args: Any) -> Any:
        # Somebody else decides while the pictures are being read.
        if not done:
            done.append("bob")
            lists: dict[str, Sequence[str]] = {verdict: made.waiting}
            decide(store, made.edit_run, who="bob", **lists)  # pyright: ignore[reportArgumentType]
        return real(*args)

    monkeypatch.setattr(decisions, "read_output", meanwhile)
    if conflict:
        with pytest.raises(ApprovalError, match="reject by bob"):
            decide(store, made.edit_run, approve="all", who="ann")
    else:
        assert decide(store, made.edit_run, approve="all", who="ann")[made.edit_ids[0]].who == "ann"
        assert Journal(store, f"decisions/{made.edit_run}").verify() == 2
