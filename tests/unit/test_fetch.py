"""`sdflow fetch`: what a person wants to look at comes here; keys stay, files of others are left alone."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

import cli.main as command
from cli.fetch import hint
from sdflow_core.records.store import Store, open_store
from tests.edited import Edited, make_edits


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Edited]:
    """A finished edit run in a store that is no folder."""
    store = open_store(f"memory://{uuid.uuid4().hex}/store")
    monkeypatch.setenv("SDFLOW_STORE", store.uri)
    made = make_edits(store)
    store.put(f"private/edit_runs/{made.edit_run}/sheet.png", b"sheet")
    store.put(f"private/edit_runs/{made.edit_run}/sheet-001.png", b"page")
    store.create("private/reports/nightly/x/index.html", b"<html>")
    store.create("private/secret.key", b"0" * 32)
    return store, made


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = command.app(["fetch", *words, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_sheets_of_a_run_by_its_id_and_any_object_by_its_address(
    far: tuple[Store, Edited], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, made = far
    code, said = run(capsys, made.edit_run, "--to", str(tmp_path))
    folder = tmp_path / made.edit_run
    assert code == 0 and {str(folder / name) for name in ("sheet-001.png", "sheet.png")} <= set(said["files"])
    assert (folder / "sheet.png").read_bytes() == b"sheet"
    assert (folder / "sheet.png").stat().st_mode & 0o077 == 0, "they show faces"
    for name in ("store:private/reports/nightly/x", f"{store.uri}/private/reports/nightly/x/"):
        code, said = run(capsys, name, "--to", str(tmp_path))
        assert code == 0 and said["files"] == [str(tmp_path / "x/index.html")]
    code, said = run(capsys, f"{store.uri}/private/reports/nightly/x/index.html", "--to", str(tmp_path))
    assert said["files"] == [str(tmp_path / "index.html")]


def test_what_is_not_brought(
    far: tuple[Store, Edited], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in {
        "private/secret.key": "keys stay",
        "private/none": "nothing of this name",
        "memory://elsewhere/x": "not lie in the store",
        "private/../x": "names no place|does not name a place",
        "0000": "no such edit run",
    }.items():
        code, said = run(capsys, name, "--to", str(tmp_path))
        assert code == 2
        assert any(word in said["error"]["message"] for word in words.split("|")), said
    code, said = run(capsys, "private", "--to", str(tmp_path / "all"))
    assert code == 0 and said["files"] and not list((tmp_path / "all").rglob("*.key"))


def test_files_of_others_are_left_alone(
    far: tuple[Store, Edited], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "index.html"
    mine.write_text("mine")
    name = "private/reports/nightly/x/index.html"
    code, said = run(capsys, name, "--to", str(tmp_path))
    assert code == 2 and "another file" in said["error"]["message"] and mine.read_text() == "mine"
    assert run(capsys, name, "--to", str(tmp_path), "--replace")[0] == 0 and mine.read_text() == "<html>"
    assert run(capsys, name, "--to", str(tmp_path))[0] == 0, "the same bytes are no other file"


def test_people_are_told_only_where_a_path_will_not_do() -> None:
    assert hint("/srv/store/sheet.png") == ""
    assert hint("s3://b/sheet.png", "abcd1234") == "To look at it here: sdflow fetch abcd1234"
