"""Every row can say why it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdflow_core.records.decisions import decide
from sdflow_core.records.errors import ContractError, NotFoundError
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.releases import release
from sdflow_core.records.store import Store
from sdflow_core.records.why import why
from tests.edited import RUNS, make_edits, replace_source


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


def test_a_bare_file_name_will_do_where_it_is_the_only_one(store: Store) -> None:
    made = make_edits(store)
    replace_source(store, made, 0)
    assert why(store, "person-0.png").text.startswith("Row ")
    assert why(store, made.source_ids[1]).table == "sources"


def test_what_became_of_an_edit_is_said(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    edit = made.edit_ids[0]
    assert "waits for a decision" in why(store, edit).text
    decide(store, made.edit_run, approve="all", who="ann")
    assert "ann said approve" in why(store, edit).text
    assert "held back by a quality gate" in why(store, made.edit_ids[-1]).text
    release(store, made.edit_run, str(tmp_path / "out"), "run")
    assert "released to" in why(store, edit).text
    decide(store, made.edit_run, reject=[edit], who="bob")
    text = why(store, edit).text
    assert "bob said reject" in text and "taken back" in text and "waits" not in text


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


def test_a_source_names_what_was_made_of_it_and_where_it_went(store: Store, tmp_path: Path) -> None:
    made = make_edits(store)
    decide(store, made.edit_run, approve=made.waiting[:1], who="ann")
    done = release(store, made.edit_run, str(tmp_path / "out"), "run")
    assert f"released to {done.outputs[0].uri}" in why(store, "person-0.png").text
    text = why(store, "person-1.png", dataset="people").text
    assert made.edit_ids[1] in text and "released" not in text
    with pytest.raises(NotFoundError):
        why(store, "person-1.png", dataset="others")


def test_runs_of_other_datasets_have_not_used_a_row(store: Store) -> None:
    made = make_edits(store)
    recipe = why(store, made.rows["latents"]).recipe
    Lineage(store).emit(
        "COMPLETE", run="plan", job="plan invert", parent="night", inputs=[], outputs=[], recipe=recipe,
        bundle=None, config=None,
    )  # fmt: skip
    assert why(store, made.rows["latents"]).reused_by == []
