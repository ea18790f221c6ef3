"""An editor for some of what the labeller knows: the rest is read and measured, and cannot be asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from cli.checks import attributes_to_train, before_edit
from sdflow_core.method.editing import load_editor
from sdflow_core.records.errors import ContractError
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundles, ModelStore, edited_attributes
from tests.nights import prepare

TINY = {"training": {"steps": 2, "checkpoint_every": 2}, "prior_samples": 16}


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def test_an_editor_of_two_attributes_under_a_labeller_that_knows_more(tmp_path: Path) -> None:
    from flows.edit import edit
    from flows.train import train

    uri = str(tmp_path / "store")
    prepare(uri, 2, people=3, prior_samples=16)
    store = open_store(uri)
    usual = Bundles(store).current()
    assert usual is not None
    known = usual.attributes
    assert set(edited_attributes(store, usual)) == {"smiling", "young", "male", "eyeglasses"}

    asked = attributes_to_train(store, "male, smiling")
    made = train("learn", {**TINY, "attributes": asked}, uri)
    bundle = Bundles(store).current()
    assert bundle is not None and bundle.editor == made["editor"] != usual.editor
    two = tuple(name for name in known if name in ("male", "smiling"))
    assert edited_attributes(store, bundle) == two and bundle.attributes == known
    editor = load_editor(ModelStore(store).weights(made["editor"]))
    assert editor.attributes == two and editor.flow.attributes == 2  # pyright: ignore[reportAttributeAccessIssue]

    facts = edit("learn", [{"male": "flip"}], store=uri)
    rows = Table(store, "learn", "edits").read().to_pylist()
    drawn = [row for row in rows if row["status"] in ("waiting", "gated")]
    assert len(rows) == facts["n"] and len(drawn) > 0  # one person's consent does not cover it
    for row in drawn:
        assert row["attributes"] == list(known)
        assert len(row["s_before"]) == len(row["s_after"]) == 2
        assert len(row["labels_after"]) == len(row["judge_after"]) == len(known)

    with pytest.raises(ContractError, match="young") as refused:
        edit("learn", [{"young": "flip"}], store=uri)
    assert refused.value.expected == "one of " + ", ".join(two)
    with pytest.raises(ContractError) as told:
        before_edit(store, "learn", {"young": "flip"})
    assert "--attributes" in str(told.value.todo) and "young" in str(told.value.todo)


def test_attributes_that_nobody_knows_are_named_before_anything_runs(tmp_path: Path) -> None:
    from flows.train import train

    uri = str(tmp_path / "store")
    prepare(uri, 2, people=3, prior_samples=16)
    store = open_store(uri)
    current = Bundles(store).current()
    assert current is not None
    assert attributes_to_train(store, "all") == current.attributes
    for asked in ("smiling,moustached", "", ","):
        with pytest.raises(ContractError, match="attributes to train"):
            attributes_to_train(store, asked)
    before = ModelStore(store).list()
    with pytest.raises(ContractError, match="moustached"):
        train("learn", {**TINY, "attributes": ("smiling", "moustached")}, uri)
    assert ModelStore(store).list() == before
