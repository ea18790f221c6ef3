"""The demo from the command line: every story, a second run, and kills in three places."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
from tests.e2e.running import ROOT, SMALL, command, environment, sdflow

pytestmark = pytest.mark.e2e
Finished = tuple[Path, dict[str, Any]]


def test_every_source_ends_as_a_row_with_a_reason(finished: Finished) -> None:
    store, facts = finished
    sources = facts["sources"]
    assert sources["in"] == 8 + 10 == sources["kept"] + sources["dropped"] + sources["failed"]
    rows = Table(open_store(str(store)), "demo", "sources").read(latest_by="source_id").to_pylist()
    by_name = {row["name"]: (row["status"], row["reason"]) for row in rows}
    assert len(by_name) == 18
    for name in (
        "empty.jpg",
        "truncated.jpg",
        "text.jpg",
        "nobody.png",
        "couple.png",
        "animated.gif",
        "nobody-asked.jpg",
    ):
        status, reason = by_name[f"awkward/{name}"]
        assert status == "dropped" and len(reason) > 5, name
    assert "faces" in by_name["awkward/couple.png"][1]
    assert "consent" in by_name["awkward/nobody-asked.jpg"][1]
    for name in ("same bytes again.jpg", "portrait été 人.png", "print.jpg"):
        assert by_name[f"awkward/{name}"] == ("kept", ""), name


def test_consent_covers_single_attributes(finished: Finished) -> None:
    store, _ = finished
    opened = open_store(str(store))
    sources = Table(opened, "demo", "sources").read(latest_by="source_id").to_pylist()
    limited = {row["source_id"] for row in sources if row["name"].startswith("awkward/portrait")}
    edits = [row for row in Table(opened, "demo", "edits").read().to_pylist() if row["source_id"] in limited]
    refused = {row["request"] for row in edits if "consent" in row["reason"]}
    assert len(edits) == 4
    assert refused == {'{"male":"flip"}', '{"young":"flip"}'}


def test_sheet_and_release_are_pictures(finished: Finished) -> None:
    _, facts = finished
    with Image.open(facts["contact_sheet"]) as sheet:
        assert sheet.width > 800
    assert facts["released"]
    for path in facts["released"]:
        with Image.open(path) as picture:
            assert picture.size == (64, 64)
            assert any("compositeWithTrainedAlgorithmicMedia" in str(v) for v in picture.info.values())


def test_audit_walks_a_released_picture_back(finished: Finished) -> None:
    store, facts = finished
    document = sdflow(store, "audit", facts["released"][0])
    assert {"source", "steps", "consent", "decision", "release"} <= set(document)
    names = [step["name"] for step in document["steps"]]
    assert [name for name in ("ingest", "invert", "label", "train", "edit") if name in names] == [
        "ingest",
        "invert",
        "label",
        "train",
        "edit",
    ]
    for step in document["steps"]:
        assert {"name", "version", "recipe", "run", "inputs", "models", "config", "code"} <= set(step)
    assert document["decision"]["verdict"] == "approve"


def test_a_released_picture_with_one_changed_pixel_is_found_out(finished: Finished, tmp_path: Path) -> None:
    store, facts = finished
    with Image.open(facts["released"][0]) as picture:
        pixels = np.array(picture)
        text = dict(picture.info)
    pixels[0, 0, 0] ^= 1
    from PIL.PngImagePlugin import PngInfo

    meta = PngInfo()
    for key, value in text.items():
        if isinstance(value, str):
            meta.add_text(key, value)
    forged = tmp_path / "forged.png"
    Image.fromarray(pixels).save(forged, pnginfo=meta)
    answer = sdflow(store, "audit", str(forged), code=3)
    assert "pixel" in answer["error"]["message"]


def test_a_second_run_calls_no_model_and_changes_nothing(finished: Finished) -> None:
    store, _ = finished
    opened = open_store(str(store))
    before = canonical_digests(opened, "demo")
    again = sdflow(store, *SMALL)
    assert again["model_calls"] == 0
    assert canonical_digests(open_store(str(store)), "demo") == before
    assert any(event["eventType"] == "REUSED" for event in Lineage(opened).events())


def test_few_task_runs_and_all_of_them_completed(finished: Finished) -> None:
    store, _ = finished
    with sqlite3.connect(store / "state" / "prefect" / "prefect.db") as database:
        runs = database.execute("select name, state_type, flow_run_id from task_run").fetchall()
        flows = database.execute("select state_type from flow_run").fetchall()
    assert runs and flows
    assert len(runs) / sum(1 for _ in {r[2] for r in runs}) < 40
    assert {state for _, state, _ in runs} == {"COMPLETED"}
    assert {state for (state,) in flows} == {"COMPLETED"}


PLACES = {
    "ingest": "private/crops/*/*.png",
    "train": "private/training/*/checkpoint.bin",
    "edit": "private/edits/*/*.png",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", PLACES)
def test_killed_and_started_again_ends_with_the_same_records(
    place: str, finished: Finished, tmp_path: Path
) -> None:
    reference = canonical_digests(open_store(str(finished[0])), "demo")
    store = tmp_path / "store"
    process = subprocess.Popen(
        command(store, *SMALL),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not any(store.glob(PLACES[place])) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the demo ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert canonical_digests(open_store(str(store)), "demo") != reference
    sdflow(store, *SMALL)
    assert canonical_digests(open_store(str(store)), "demo") == reference
