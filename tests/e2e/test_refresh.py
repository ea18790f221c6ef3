"""Refresh from the command line: what is stale, a refusal, a kill in the middle, and the way back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.store import open_store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundles
from tests.e2e.running import ROOT, command, environment, sdflow
from tests.encoders import BAD, GOOD, add_encoder

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
Finished = tuple[Path, dict[str, Any]]

# The demo's editors learned for 10 steps: too little to be held to figures.
POLICY = """
canary_rows = 8
editor_rows = 2
max_accuracy_loss = 1.0
max_preservation_loss = 1.0
max_edit_identity_loss = 2.0
training = { training = { steps = 4, checkpoint_every = 2 }, prior_samples = 64 }
"""
FACES = 10


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return str(path)


def copied(finished: Finished, to: Path) -> Path:
    return Path(shutil.copytree(finished[0], to, ignore=shutil.ignore_patterns("state")))


def promoted(store: Path, encoder: str) -> str:
    return str(sdflow(store, "models", "promote", encoder, "--by", "ann")["bundle"])


def killed_when(store: Path, pattern: str, policy: str) -> None:
    """Start a refresh, pull the plug when a file appears that was not there."""
    there = set(store.glob(pattern))
    process = subprocess.Popen(
        command(store, "refresh", "demo", "--policy", policy),
        cwd=ROOT,
        env={**environment(), "SDFLOW_SHARD_ROWS": "2"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while set(store.glob(pattern)) <= there and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the refresh ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_stale_says_what_and_why_before_and_after(finished: Finished, tmp_path: Path) -> None:
    store = copied(finished, tmp_path / "store")
    opened = open_store(str(store))
    now = sdflow(store, "stale", "demo")
    assert now["due"] == [] and all(step["stale"] == 0 for step in now["datasets"][0]["steps"])
    encoder = add_encoder(opened, GOOD)
    asked = sdflow(store, "stale", "demo", "--bundle", encoder[:12])
    assert asked["due"] == ["demo"], "as if it were in force"
    bundle = promoted(store, encoder)
    found = sdflow(store, "stale")
    assert found["bundle"] == bundle == asked["bundle"] and found["due"] == ["demo"]
    steps = {step["step"]: step for step in found["datasets"][0]["steps"]}
    assert (steps["invert"]["stale"], steps["label"]["stale"], steps["train"]["stale"]) == (FACES, 0, 1)
    assert steps["invert"]["seconds"] > 0 and steps["edit"]["stale"] == steps["edit"]["wanted"] == 44
    [(release, pictures)] = found["datasets"][0]["releases"].items()
    assert release == finished[1]["release"] and pictures == len(finished[1]["released"])
    row = Table(opened, "demo", "latents").read(columns=["row_key"])["row_key"][0].as_py()
    assert f"stale since bundle {bundle[:12]}: encoder changed" in sdflow(store, "why", row)["text"]
    sdflow(store, "models", "rollback", "--by", "ann")
    assert sdflow(store, "stale")["due"] == [] and sdflow(store, "why", row)["stale"] == ""


def test_a_worse_encoder_waits_for_a_person(finished: Finished, policy: str, tmp_path: Path) -> None:
    store = copied(finished, tmp_path / "store")
    opened = open_store(str(store))
    before = canonical_digests(opened, "demo")
    promoted(store, add_encoder(opened, BAD))
    facts = sdflow(store, "refresh", "demo", "--policy", policy, code=3)
    assert facts["state"] == "waits" and facts["canary"]["new"]["psnr_db"] < facts["canary"]["old"]["psnr_db"]
    assert Path(facts["sheet"]).stat().st_size > 10_000
    assert canonical_digests(open_store(str(store)), "demo") == before


def test_a_killed_refresh_ends_with_the_same_records(finished: Finished, policy: str, tmp_path: Path) -> None:
    straight, broken = (copied(finished, tmp_path / name) for name in ("straight", "broken"))
    for store in (straight, broken):
        promoted(store, add_encoder(open_store(str(store)), GOOD))
    facts = sdflow(straight, "refresh", "demo", "--policy", policy)
    assert facts["state"] == "done" and facts["rows"] == FACES
    for pattern in (
        "private/refresh/*/canary.json",
        "private/datasets/demo/latents/shards/*.parquet",
        "private/training/*/checkpoint.bin",
    ):
        killed_when(broken, pattern, policy)
    again = sdflow(broken, "refresh", "demo", "--policy", policy)
    assert again["state"] == "done" and again["new_bundle"] == facts["new_bundle"] == again["in_service"]
    one, other = (open_store(str(store)) for store in (straight, broken))
    assert canonical_digests(one, "demo") == canonical_digests(other, "demo")
    kinds = [entry.kind for entry in Bundles(other).history()]
    assert kinds == [entry.kind for entry in Bundles(one).history()] and kinds[-1] == "complete"
    back = sdflow(broken, "models", "rollback", "--by", "ann")
    assert back["bundle"] == facts["old_bundle"] and sdflow(broken, "stale")["due"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("refresh", "nobody"), "no such dataset"),
        (("refresh", "demo", "--go"), "--by NAME"),
        (("refresh", "demo", "--pause"), "--by NAME"),
        (("stale", "nobody"), "no such dataset"),
        (("stale", "demo", "--bundle", "ffffffff"), "no such model"),
    ],
)
def test_wrong_use(words: tuple[str, ...], said: str, finished: Finished) -> None:
    assert said in sdflow(finished[0], *words, code=2)["error"]["message"]


def test_a_policy_out_of_bounds_names_the_option(finished: Finished, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"min_label_agreement": 1.5}')
    answer = sdflow(finished[0], "refresh", "demo", "--policy", str(path), code=2)
    assert "min_label_agreement" in answer["error"]["message"] and "1" in answer["error"]["message"]
