"""`sdflow evaluate`: what it says of an editor, whom it leaves alone, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import cli.main as command
from sdflow_core.faces.checkpoint import load_model
from sdflow_core.method.editing import LinearEditor
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.method.sweeping import Sweep
from sdflow_core.records import picking
from sdflow_core.records.keys import dataset_digest, row_key
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table, wplus_column
from sdflow_core.weights.embedded import accept_for_demo, embedded_file, install_embedded
from sdflow_core.weights.model_store import Bundle, Bundles, ModelStore
from tasks import recipes
from tasks.evaluation import evaluate_dataset, evaluated

NAMES = ("smiling", "young")
PEOPLE = 5


@pytest.fixture
def bundle(store: Store, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The embedded models, promoted, without an editor."""
    monkeypatch.setenv("SDFLOW_STORE", store.uri)
    accept_for_demo(store)
    found = install_embedded(store)
    Bundles(store).promote(found, "test", "")
    return found


def add_faces(store: Store, bundle: Bundle, consents: Sequence[list[str]]) -> list[str]:
    """A dataset `people` of drawn codes, one face a consent; returns the latents' row keys."""
    rows = [f"{i:064x}" for i in range(len(consents))]
    ingest, invert = recipes.ingest(bundle).key, recipes.invert(bundle).key
    sources = [
        {
            "row_key": row_key(ingest, [face]),
            "recipe": ingest,
            "status": "kept",
            "reason": "",
            "inputs": [face],
            "uri": f"file:///{face}.png",
            "name": f"{face}.png",
            "source_id": face,
            "image_id": face,
            "face_id": face,
            "consent": face,
            "consent_attributes": allowed,
            "consent_expires": "",
        }
        for face, allowed in zip(rows, consents, strict=True)
    ]
    Table(store, "people", "sources").commit(pa.Table.from_pylist(sources), run="r")
    prior = load_model(embedded_file("prior.safetensors"), expect="prior")
    codes = prior.sample(len(rows), torch.Generator().manual_seed(5), truncation=0.9).numpy()
    keys = [row_key(invert, [face]) for face in rows]
    table = pa.table(
        {
            "row_key": keys,
            "recipe": [invert] * len(rows),
            "status": ["kept"] * len(rows),
            "reason": [""] * len(rows),
            "inputs": [[face] for face in rows],
            "face_id": rows,
            "w_plus": wplus_column(codes),
        }
    )
    Table(store, "people", "latents").commit(table, run="r")
    return keys


def add_editor(store: Store, bundle: Bundle, inputs: list[str]) -> str:
    """Promote a linear editor whose directions change little."""
    labeller: Any = load_model(embedded_file("labeller.safetensors"), expect="labeller")
    rng = torch.Generator().manual_seed(0)
    directions = 0.2 * torch.randn(len(NAMES), 10, 128, generator=rng)
    assert bundle.encoder is not None
    editor = LinearEditor(directions, SemanticEncoder(labeller.only(NAMES)), bundle.encoder)
    card = {"title": "SDFlow editor of dataset others", "attributes": list(NAMES), "inputs": inputs}
    digest = ModelStore(store).add("editor", editor.to_bytes(), card)
    Bundles(store).promote(bundle.model_copy(update={"editor": digest}), "test", "")
    return digest


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = command.app(["evaluate", *words, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, json.loads(out.splitlines()[-1])


def test_what_cannot_be_evaluated(store: Store, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = said(capsys, "nobody")
    assert code == 2 and "nobody" in found["error"]["message"] and "invert" in found["error"]["message"]
    add_faces(store, bundle, [["*"]])
    code, found = said(capsys, "people")
    assert code == 2 and "no editor" in found["error"]["message"] and "train" in found["error"]["message"]
    add_editor(store, bundle, [])
    for name in ("beard", "beads"):  # the labeller knows the first, nobody the second
        code, found = said(capsys, "people", "--attributes", f"smiling,{name}")
        assert code == 2 and name in found["error"]["message"] and "young" in found["error"]["message"]
    for words in (["--images", "0"], ["--images", "many"]):
        code, _ = said(capsys, "people", *words)
        assert code == 2
    assert not Table(store, "people", "edits").recipes()


def test_only_those_who_agreed_are_edited(
    store: Store, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = add_faces(store, bundle, [["*"], ["smiling"], list(NAMES), ["young"], ["male"]])
    add_editor(store, bundle, [dataset_digest(keys)])
    code, found = said(capsys, "people", "--images", "50")
    assert code == 0 and found["faces"] == 2 and found["trained_on"] == "no"
    assert set(found["attributes"]) == set(NAMES)
    code, found = said(capsys, "people", "--attributes", "young")
    assert code == 0 and found["faces"] == 3 and set(found["attributes"]) == {"young"}
    row = found["attributes"]["young"]
    assert 0 <= row["accuracy"] <= row["best"] <= 1 and set(row["at_90"]) >= {
        "preserved",
        "identity",
        "leakage",
    }
    report = Path(found["report"].removeprefix("file://"))
    assert json.loads(report.read_bytes())["matrix"] == found["matrix"]
    assert all(Path(plot.removeprefix("file://")).read_bytes()[:4] == b"\x89PNG" for plot in found["plots"])
    assert "private/reports" in str(report)
    again = evaluate_dataset(store, "people", images=100, attributes=("young",))
    assert again["report"] == found["report"]  # the same question has the same answer, in the same place
    assert command.app(["evaluate", "people", "--attributes", "young"]) == 0
    out = capsys.readouterr().out
    assert "3 faces" in out and "leakage" in out


def test_codes_are_read_of_those_who_are_drawn_and_of_nobody_else(
    store: Store, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = add_faces(store, bundle, [["*"]] * 6)
    add_editor(store, bundle, [])
    asked: list[list[str]] = []
    read: list[tuple[str, ...]] = []
    picked, whole = picking.pick_rows, Table.read

    def pick(table: Table, row_keys: Sequence[str], columns: Sequence[str]) -> pa.Table:
        asked.append(list(row_keys))
        return picked(table, row_keys, columns)

    def seen(self: Table, **options: Any) -> pa.Table:
        read.append(tuple(options.get("columns") or ("all",)))
        return whole(self, **options)

    monkeypatch.setattr(picking, "pick_rows", pick)
    monkeypatch.setattr(Table, "read", seen)
    found = evaluate_dataset(store, "people", images=2, attributes=("young",), seed=3)
    assert found["faces"] == 2 and len(asked) == 1 and len(set(asked[0])) == 2 and set(asked[0]) <= set(keys)
    assert asked[0] == sorted(asked[0])
    assert not [columns for columns in read if {"w_plus", "all"} & set(columns)], "never all codes"


def test_nobody_agreed(store: Store, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    add_faces(store, bundle, [["male"]])
    add_editor(store, bundle, [])
    code, found = said(capsys, "people")
    assert code == 2 and "consent" in found["error"]["message"]


def test_figures_of_known_edits() -> None:
    """Two attributes; the first always succeeds and takes the second along in half of the rows."""
    before = np.tile(np.array([[0.2, 0.3]], np.float32), (4, 1))
    after = np.tile(before, (1, 2, 1, 1))
    after[0, 0, :2, 0] = 0.8  # at strength .5 half of them
    after[0, 1, :, 0], after[0, 1, :2, 1] = 0.8, 0.7
    looks = {"labeller": after, "judge": after, "sface": np.ones((1, 2, 4, 1), np.float32)}
    first = {"labeller": before, "judge": before, "sface": np.ones((4, 1), np.float32)}
    strengths = np.array([[0.5, 1.0]], np.float32)
    found = evaluated(
        Sweep(("a",), strengths, np.zeros((1, 2, 4), np.float32), np.ones((1, 4), bool), first, looks, 0),
        ("a", "b"),
    )
    row = found["attributes"]["a"]
    assert (row["accuracy"], row["best"], row["linearity"]) == (1.0, 1.0, None)
    # accuracy passes .9 at four fifths of the way from strength .5 to 1; there two fifths of b are lost
    assert row["at_90"] == {"preserved": 0.6, "judge_preserved": 0.6, "identity": 1.0, "leakage": 0.2963}
    assert found["matrix"] == {"a": {"a": 0.6, "b": 0.2}}
