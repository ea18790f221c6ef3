"""Edits in the records go back into the very photograph they came from, and no further than a consent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdflow_core.faces.decode import decode
from sdflow_core.faces.paste_back import PasteConfig
from sdflow_core.faces.pixels import pixel_digest, png_bytes, read_png
from sdflow_core.records.errors import ApprovalError, ContractError, NotFoundError, PolicyError
from sdflow_core.records.keys import sha256_hex
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from tests.pasted import World, make

pytestmark = pytest.mark.weights


@pytest.fixture
def world(store: Store, tmp_path: Path) -> World:
    return make(store, tmp_path / "photos")


def test_edits_are_pasted_into_the_upright_photograph_and_the_original_is_only_read(world: World) -> None:
    original = world.path.read_bytes()
    row = world.paste()
    pasted, photograph = read_png(world.store.read(row["output"])), decode(original)
    assert pasted.shape == photograph.shape == (500, 700, 3)
    changed = (pasted != photograph).any(axis=2)
    assert changed[230, 220] and changed[260, 520] and not changed[:, 350:370].any()
    rise = pasted[225:245, 210:230].astype(float) - photograph[225:245, 210:230]
    assert np.abs(rise.mean((0, 1)) - [40, 0, -20]).max() < 4
    assert world.path.read_bytes() == original
    assert row["inputs"] == sorted(world.edits) and row["pixel_sha256"] == pixel_digest(pasted)
    assert row["file_sha256"] == sha256_hex(world.store.read(row["output"])) and len(row["boxes"]) == 8


def test_pasting_twice_is_pasting_once_and_is_told(world: World) -> None:
    first, second = world.paste(), world.paste(*world.edits[::-1])
    assert first == second
    other = world.paste(world.edits[0])
    third = world.paste(config=PasteConfig(blend="replace"))
    assert len({first["output"], other["output"], third["output"]}) == 3
    told = [event["eventType"] for event in Lineage(world.store).events()]
    assert told.count("REUSED") == 1 and told.count("COMPLETE") == 4


def test_what_is_not_the_one_photograph_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such edit"):
        world.paste("0" * 64)
    with pytest.raises(ContractError, match="no picture.*no smile"):
        world.paste(world.outputs[2])
    with pytest.raises(ContractError, match="each once"):
        world.paste(world.edits[0], world.edits[0])
    kept = world.path.read_bytes()
    world.path.write_bytes(kept + b"\n")
    with pytest.raises(ContractError, match="another one than was ingested"):
        world.paste()
    world.path.write_bytes(kept)
    world.store.put(world.outputs[0], png_bytes(np.zeros((64, 64, 3), np.uint8)))
    with pytest.raises(ApprovalError):
        world.paste()
    assert not Table(world.store, "people", "pasted").recipes()


def test_nothing_is_pasted_when_the_consent_has_ended(store: Store, tmp_path: Path) -> None:
    world = make(store, tmp_path / "photos", expires="2020-01-31")
    with pytest.raises(PolicyError, match="2020-01-31"):
        world.paste()


def test_the_consent_in_force_counts_whichever_models_looked_last(world: World) -> None:
    world.consent_again(attributes=["young"])
    with pytest.raises(PolicyError, match="does not allow to edit smiling"):
        world.paste()
    world.consent_again(consent="")
    with pytest.raises(PolicyError, match="no consent for its source any more"):
        world.paste()
    world.consent_again(attributes=["*"])
    assert world.paste()["status"] == "kept"


def test_a_photograph_that_was_lost_is_pasted_again_into_the_same_row(world: World) -> None:
    first = world.paste()
    before = world.store.read(first["output"])
    world.store.delete(first["output"])
    assert world.paste() == first and world.store.read(first["output"]) == before


def test_boxes_stand_in_the_order_of_the_edits_of_the_row(world: World) -> None:
    row = world.paste(*world.edits[::-1])
    boxes = {edit: row["boxes"][4 * n : 4 * n + 4] for n, edit in enumerate(row["inputs"])}
    left, right = boxes[world.edits[0]], boxes[world.edits[1]]
    assert left[2] <= 370 and right[0] >= 350, "the first edit is of the face at 220 px, the second at 520"
    assert (row["width"], row["height"]) == (700, 500)
