"""Every row can say why it is there."""

from __future__ import annotations

import pytest

from sdflow_core.records.errors import ContractError, NotFoundError
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.store import Store
from sdflow_core.records.why import why
from tests.edited import RUNS, make_edits


def test_a_computed_row(store: Store) -> None:
    made = make_edits(store)
    found = why(store, made.rows["latents"][:12])
    assert (found.row_key, found.dataset, found.table, found.run) == (
        made.rows["latents"],
        "people",
        "latents",
        RUNS["invert"],
    )
    assert (found.step, found.version, found.config) == ("invert", 1, {"of": "invert"})
    assert found.inputs[0]["is"] == "row of faces"
    assert found.code is not None
    assert "computed and kept" in found.text
    assert "No later run" in found.text


def test_a_dropped_row_says_its_reason(store: Store) -> None:
    made = make_edits(store)
    found = why(store, made.rows["dropped"])
    assert found.reason == "no face found"
    assert "dropped for good: no face found" in found.text
    assert why(store, "person-99.png").row_key == found.row_key
    assert why(store, "f" * 64).row_key == found.row_key


def test_runs_that_reused_a_row_are_named(store: Store) -> None:
    made = make_edits(store)
    recipe = why(store, made.rows["latents"]).recipe
    place = "/somewhere/private/datasets/people/latents"
    facts = {"inputs": [], "recipe": recipe, "bundle": None, "config": None}
    for run, parent, uri in (
        ("later", "night", place),
        ("other", "night", place[:-7] + "faces"),
        ("shard", "story", place),
    ):
        for event in ("REUSED", "COMPLETE"):
            outputs = [{"name": "latents", "uri": uri}]
            Lineage(store).emit(event, run=run, job="invert", parent=parent, outputs=outputs, **facts)  # pyright: ignore
    found = why(store, made.rows["latents"])
    assert [(item.run, item.job) for item in found.reused_by] == [("later", "invert")]
    assert "Run later" in found.text
    assert "used it again" in found.text


@pytest.mark.parametrize(
    ("query", "kind", "words"),
    [
        ("f" * 63 + "0", NotFoundError, "not known"),
        ("zz", NotFoundError, "at least 4"),
        ("", ContractError, "no row"),
    ],
)
def test_what_is_not_known_is_said(store: Store, query: str, kind: type[Exception], words: str) -> None:
    make_edits(store)
    with pytest.raises(kind, match=words):
        why(store, query)
