"""Every released picture leads back to its source, and a changed one is caught."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from sdflow_core.faces.pixels import png_bytes, read_text
from sdflow_core.records.audit import audit
from sdflow_core.records.decisions import decide
from sdflow_core.records.errors import ApprovalError, ContractError, NotFoundError
from sdflow_core.records.releases import release
from sdflow_core.records.store import Store
from tests.edited import EDITOR, RUNS, Edited, consent_again, make_edits, picture


def _released(store: Store, tmp_path: Path) -> tuple[Edited, Path]:
    made = make_edits(store)
    decide(store, made.edit_run, approve="all", who="ann", note="good")
    done = release(store, made.edit_run, str(tmp_path / "out"), "run-publish")
    return made, Path(done.outputs[0].uri)


def test_a_released_picture_leads_back_to_its_source(store: Store, tmp_path: Path) -> None:
    made, path = _released(store, tmp_path)
    found = audit(store, str(path))
    assert {"source", "steps", "consent", "decision", "release"} <= set(found)
    assert [step["name"] for step in found["steps"]] == [
        "ingest",
        "invert",
        "label",
        "train",
        "edit",
        "publish",
    ]
    for step in found["steps"]:
        assert {"name", "version", "recipe", "run", "inputs", "models", "config", "code"} <= set(step)
    steps = {step["name"]: step for step in found["steps"]}
    assert steps["invert"]["models"] == [{"kind": "encoder", "digest": "c" * 64}]
    assert steps["train"]["editor"] == EDITOR
    assert steps["edit"]["run"] == RUNS["edit"]
    assert steps["edit"]["code"]
    assert steps["edit"]["config"] == {"of": "edit"}
    assert steps["publish"]["run"] == "run-publish"
    assert found["source"]["source_id"] == made.source_ids[0]
    assert found["consent"]["valid_today"]
    assert (found["decision"]["who"], found["decision"]["note"]) == ("ann", "good")
    assert found["release"]["approved_by"] == "ann"
    assert found["picture"]["matches"] == "file"


def test_all_names_of_a_picture_give_the_same_story(store: Store, tmp_path: Path) -> None:
    made, path = _released(store, tmp_path)
    story = audit(store, str(path))
    same = audit(store, path.read_bytes())
    names = [
        made.edit_ids[0],
        made.edit_ids[0][:8],
        story["picture"]["pixel_sha256"],
        story["picture"]["file_sha256"],
    ]
    for found in [same, *(audit(store, name) for name in names), audit(store, "store:private/edits/0.png")]:
        assert found["edit"] == story["edit"]
        assert found["steps"] == story["steps"]


def test_an_edit_that_was_not_released_or_decided_has_no_release(store: Store) -> None:
    made = make_edits(store)
    found = audit(store, made.edit_ids[0])
    assert (found["release"], found["decision"]) == (None, None)
    assert [step["name"] for step in found["steps"]][-1] == "edit"


def test_the_consent_is_the_one_of_the_edit(store: Store, tmp_path: Path) -> None:
    made, path = _released(store, tmp_path)
    before = audit(store, str(path))["consent"]
    consent_again(store, made, 0, expires="2020-01-01")
    assert audit(store, str(path))["consent"] == before


def test_changed_pixels_are_caught(store: Store, tmp_path: Path) -> None:
    made, path = _released(store, tmp_path)
    image = picture(0)
    image[3, 3, 0] ^= 1
    forged = png_bytes(image, read_text(path.read_bytes()))
    with pytest.raises(ApprovalError, match=f"changed.*{made.edit_ids[0]}"):
        audit(store, forged)


def test_another_edits_name_on_a_picture_is_caught(store: Store, tmp_path: Path) -> None:
    made, _ = _released(store, tmp_path)
    with pytest.raises(ApprovalError, match="changed"):
        audit(store, png_bytes(picture(0), {"sdflow:edit_id": made.edit_ids[1]}))


def test_a_cut_file_that_claims_an_edit_is_caught(store: Store, tmp_path: Path) -> None:
    _, path = _released(store, tmp_path)
    with pytest.raises(ApprovalError, match="cannot be decoded"):
        audit(store, path.read_bytes()[:-60])


def test_changed_metadata_is_told(store: Store, tmp_path: Path) -> None:
    made, _ = _released(store, tmp_path)
    found = audit(store, png_bytes(picture(0)))
    assert (found["edit"]["edit_id"], found["picture"]["matches"]) == (made.edit_ids[0], "file")
    found = audit(store, png_bytes(picture(0), {"Software": "other"}))
    assert found["picture"]["matches"] == "pixels"


@pytest.mark.parametrize(
    ("query", "kind", "words"),
    [
        ("f" * 64, NotFoundError, "known here"),
        ("0000", ContractError, "too short"),
        ("nosuchfile.png", NotFoundError, "no such picture"),
        ("x" * 5000, NotFoundError, "no such picture"),
        (png_bytes(picture(50)), NotFoundError, "not known here"),
        (png_bytes(picture(50), {"sdflow:edit_id": "f" * 64}), NotFoundError, "says that it is edit"),
        (b"text", ContractError, "no picture"),
    ],
)
def test_unknown_pictures_are_refused_clearly(
    store: Store, query: str | bytes, kind: type[Exception], words: str
) -> None:
    make_edits(store)
    with pytest.raises(kind, match=words):
        audit(store, query)


def test_a_jpeg_copy_is_not_taken_for_the_picture(store: Store, tmp_path: Path) -> None:
    _, path = _released(store, tmp_path)
    copy = io.BytesIO()
    Image.open(path).save(copy, "JPEG")
    with pytest.raises(NotFoundError, match="re-encoded"):
        audit(store, copy.getvalue())


def test_an_empty_store_knows_nothing(store: Store) -> None:
    with pytest.raises(NotFoundError):
        audit(store, "a" * 64)
