"""Errors, configuration, keys, lineage."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from sdflow_core.records import keys
from sdflow_core.records.config import Config, DatasetRef, as_recipe
from sdflow_core.records.errors import (
    CapacityError,
    ContractError,
    CorruptError,
    NotFoundError,
    PolicyError,
    SDFlowError,
    TransientError,
)
from sdflow_core.records.lineage import Lineage, code_version, environment, load_recipe, save_recipe
from sdflow_core.records.store import Store


def test_an_error_says_what_expected_found_where_and_what_to_do() -> None:
    error = ContractError("it broke", expected=0, found="two", where="a.json", todo="mend it")
    assert str(error) == "it broke. Expected: 0. Found: two. Where: a.json. What to do: mend it."
    assert str(SDFlowError("really?")) == "really?"


@pytest.mark.parametrize("kind", [TransientError, CapacityError, PolicyError, CorruptError, NotFoundError])
def test_errors_cross_processes(kind: type[SDFlowError]) -> None:
    error = kind("it broke", expected=1, todo="mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error)


def test_configuration_is_frozen_and_knows_its_names() -> None:
    class Example(Config):
        size: int = 8

    with pytest.raises(ValidationError):
        Example(sice=9)  # pyright: ignore
    with pytest.raises(ValidationError):
        Example().size = 9  # pyright: ignore
    assert as_recipe(Example()) == {"size": 8}


def test_references_are_small() -> None:
    reference = DatasetRef(uri="s3://bucket/" + "x" * 200, version=10**6, digest="f" * 64, rows=10**9)
    assert len(reference.model_dump_json()) < 1000


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, {"a": [math.nan]}, {1: 2}, object(), b"x", "\ud800", {1, 2}]
)
def test_what_has_no_one_spelling_is_refused(value: object) -> None:
    with pytest.raises(ContractError):
        keys.canonical_json(value)


def test_keys_are_what_they_were() -> None:
    # Written down: these values name rows in stores that exist. A change here makes every row stale.
    recipe = keys.recipe("invert", 1, {"batch": 8, "precision": "fp32"}, {"encoder": "ab"})
    assert recipe == "6f72a525acc2cb30b3794d3dec38ba285b17bde777706edd4af290b3283a8907"
    assert (
        keys.row_key(recipe, ["a", "b"]) == "fda5ebc58f29ea52e985623542dcf9e4c043010470d4747cd23780f3c6233df0"
    )
    assert (
        keys.dataset_digest(["b", "a", "b"])
        == "0473ef2dc0d324ab659d3580c1134e9d812035905c4781fdd6d529b0c6860e13"
    )


def test_a_recipe_can_be_read_years_later(store: Store) -> None:
    document = keys.recipe_document("invert", 1, {"batch": 8}, {"encoder": "ab"})
    recipe = save_recipe(store, document)
    assert recipe == keys.recipe("invert", 1, {"batch": 8}, {"encoder": "ab"}) == save_recipe(store, document)
    assert load_recipe(store, recipe) == document
    with pytest.raises(NotFoundError):
        load_recipe(store, "0" * 64)
    Path(store.url(f"recipes/{recipe}.json")).write_bytes(b"{}")
    with pytest.raises(CorruptError):
        load_recipe(store, recipe)


def emit(lineage: Lineage, kind: str, run: str = "run-1", **more: object) -> str:
    fields: dict[str, object] = {
        "job": "invert",
        "parent": None,
        "inputs": [],
        "outputs": [],
        "recipe": None,
        "bundle": None,
        "config": None,
        **more,
    }
    return lineage.emit(kind, run=run, **fields)  # pyright: ignore


def test_events_in_order_with_openlineages_names(store: Store) -> None:
    lineage = Lineage(store)
    emit(lineage, "START")
    emit(
        lineage,
        "COMPLETE",
        parent="run-0",
        inputs=[{"name": "faces", "digest": "ab"}],
        recipe="rr",
        bundle="bb",
        config={"batch": 8},
    )
    emit(lineage, "FAIL", run="run-2", error="it broke")
    start, complete = lineage.events("run-1")
    assert [start["eventType"], complete["eventType"]] == ["START", "COMPLETE"]
    assert (
        complete["run"]["runId"] == "run-1" and complete["run"]["facets"]["parent"]["run"]["runId"] == "run-0"
    )
    assert complete["job"] == {"namespace": "sdflow", "name": "invert"}
    assert complete["inputs"] == [{"namespace": "sdflow", "name": "faces", "digest": "ab"}]
    facet = complete["run"]["facets"]["sdflow"]
    assert (facet["recipe"], facet["bundle"], facet["config"]) == ("rr", "bb", {"batch": 8})
    assert facet["codeVersion"] == code_version() and facet["environment"] == environment()
    assert start["eventTime"] <= complete["eventTime"] and "parent" not in start["run"]["facets"]
    assert len(list(lineage.events())) == 3


def test_events_hold_no_credentials(store: Store) -> None:
    key = emit(
        Lineage(store), "START", config={"uri": "s3://key:secret@host/bucket"}, error="at s3://k:s@h/b"
    )
    text = store.read(key).decode()
    assert "secret" not in text and "k:s" not in text
    assert json.loads(text)["run"]["facets"]["sdflow"]["config"]["uri"] == "s3://host/bucket"


@pytest.mark.parametrize("run", ["", "a/b", ".."])
def test_bad_events_are_refused(store: Store, run: str) -> None:
    with pytest.raises(ContractError):
        emit(Lineage(store), "START", run=run)
    with pytest.raises(ContractError):
        emit(Lineage(store), "DONE")


def test_environment_says_what_results_depend_on() -> None:
    assert {"python", "platform", "torch"} <= set(environment())
    assert code_version()[0].isdigit()
