"""The whole night on one machine: up, promote, nightly, decide, publish, refresh, rollback, down."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundles
from tests.e2e.running import sdflow
from tests.e2e.test_refresh import POLICY
from tests.encoders import GOOD, add_encoder
from tests.nights import unnamed_shards, whole, write_policy

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
Finished = tuple[Path, dict[str, Any]]


@pytest.fixture
def machine(finished: Finished, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A store with models and an editor, a server and a worker that run for it, and a night's policy."""
    store = Path(shutil.copytree(finished[0], tmp_path / "store", ignore=shutil.ignore_patterns("state")))
    shutil.rmtree(store / "private/edit_runs")
    policy = write_policy(tmp_path / "night.toml", "night", finished[0] / "demo/photos")
    sdflow(store, "up")
    try:
        yield store, policy
    finally:
        assert sdflow(store, "down")["left_over"] == 0


def latents(store: Store) -> int:
    return Table(store, "night", "latents").read(columns=["row_key"]).num_rows


def test_the_whole_night(machine: tuple[Path, Path], tmp_path: Path) -> None:
    store, policy = machine
    opened = open_store(str(store))
    rules = tmp_path / "refresh.toml"
    rules.write_text(POLICY)
    old = Bundles(opened).current()
    assert old is not None and old.editor is not None

    first = sdflow(store, "nightly", str(policy))
    [part] = first["datasets"]
    [run] = part["edit_runs"]
    faces = part["new_latents"]
    assert first["status"] == "done" and part["edits"]["waiting"] > 0 and latents(opened) == faces > 0
    decided = sdflow(store, "decide", run, "--approve", "all", "--by", "ann", "--note", "looked at the sheet")
    released = sdflow(store, "publish", run, "--to", str(tmp_path / "out"))
    assert len(released["outputs"]) == decided["approved"] == part["edits"]["waiting"]
    models = {
        model["kind"]: model["digest"]
        for step in sdflow(store, "audit", released["outputs"][0])["steps"]
        for model in step["models"]
    }
    assert models["encoder"] == old.encoder and models["editor"] == old.editor
    before, wrong = whole(store, "night")
    assert wrong == 0

    second = sdflow(store, "nightly", str(policy))
    assert second["totals"]["model_calls"] == second["totals"]["new"] == second["totals"]["undecided"] == 0

    candidate = add_encoder(opened, GOOD)
    sdflow(store, "models", "promote", candidate, "--by", "ann")
    between = sdflow(store, "nightly", str(policy))
    assert between["totals"]["model_calls"] == 0, "a candidate is not in service"
    assert "sdflow refresh night" in [step["command"] for step in between["todo"]]
    assert whole(store, "night")[0] == before
    assert set(sdflow(store, "stale")["due"]) == {"demo", "night"}

    assert sdflow(store, "refresh", "demo", "--policy", str(rules))["state"] == "done"
    refreshed = sdflow(store, "refresh", "night", "--policy", str(rules))
    assert refreshed["state"] == "done" and refreshed["rows"] == faces
    assert latents(opened) == 2 * faces, "the old codes stay readable"
    assert sdflow(store, "stale")["due"] == []
    new = Bundles(opened).current()
    assert new is not None and new.encoder == candidate and new.editor not in (None, old.editor)
    after = sdflow(store, "nightly", str(policy))
    assert after["datasets"][0]["bundle"] == new.digest
    assert after["totals"]["edited"] > 0, "what the new editor makes is looked at anew"

    back = sdflow(store, "models", "rollback", "--by", "ann", "--note", "the old one was better")
    assert back["bundle"] == old.digest
    assert sdflow(store, "stale")["due"] == []
    last = sdflow(store, "nightly", str(policy))
    assert last["totals"]["model_calls"] == 0 and last["datasets"][0]["bundle"] == old.digest

    assert sdflow(store, "verify")["ok"] and whole(store, "night")[1] == 0
    sdflow(store, "gc", "--delete", "--older-than-hours", "0")
    assert not unnamed_shards(store) and sdflow(store, "verify")["ok"]
    assert sdflow(store, "audit", released["outputs"][0])["release"]["revoked"] is False
