"""The night from the command line: killed and started again, and a policy that is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import ROOT, command, environment, sdflow
from tests.nights import unnamed_shards, whole, write_policy

pytestmark = pytest.mark.e2e
Finished = tuple[Path, dict[str, Any]]
PLACES = {
    "ingest": "private/datasets/night/sources/shards/*.parquet",
    "edit": "private/edit_runs/*.json",
}


def prepared(finished: Finished, tmp_path: Path, name: str) -> tuple[Path, Path]:
    """A copy of the demo's store, and the policy of a night over its photographs."""
    store = Path(shutil.copytree(finished[0], tmp_path / name, ignore=shutil.ignore_patterns("state")))
    shutil.rmtree(store / "private/edit_runs")
    return store, write_policy(tmp_path / f"{name}.toml", "night", finished[0] / "demo/photos")


@pytest.fixture(scope="module")
def calm(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], dict[str, Any]]:
    """Digests and figures of an undisturbed night."""
    store, policy = prepared(finished, tmp_path_factory.mktemp("calm"), "calm")
    facts = sdflow(store, "nightly", str(policy))
    digests, wrong = whole(store, "night")
    assert wrong == 0 and not unnamed_shards(store)
    return digests, facts


def test_a_night_from_the_command_line(calm: tuple[dict[str, str], dict[str, Any]]) -> None:
    _, facts = calm
    assert facts["status"] == "done" and Path(facts["report"]).is_file()
    (part,) = facts["datasets"]
    assert part["sources"]["in"] == 18 == sum(part["sources"][n] for n in ("kept", "dropped", "failed"))
    assert part["edits"]["rendered"] == part["edits"]["waiting"] + part["edits"]["gated"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", PLACES)
def test_killed_and_started_again_ends_with_the_same_records(
    place: str, finished: Finished, calm: tuple[dict[str, str], dict[str, Any]], tmp_path: Path
) -> None:
    store, policy = prepared(finished, tmp_path, "killed")
    process = subprocess.Popen(
        command(store, "nightly", str(policy)),
        cwd=ROOT,
        env={**environment(), "SDFLOW_SHARD_ROWS": "5"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not any(store.glob(PLACES[place])) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the night ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert whole(store, "night")[0] != calm[0]
    sdflow(store, "nightly", str(policy))
    digests, wrong = whole(store, "night")
    assert digests == calm[0] and wrong == 0


def test_a_request_outside_the_policy_is_refused_before_anything_runs(tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policy.toml", "night", tmp_path / "photos")
    policy.write_text(policy.read_text().replace("smiling = {}", "smiling = { high = 0.5 }"))
    text = str(sdflow(tmp_path / "store", "nightly", str(policy), code=2)["error"]["message"])
    assert "dataset night: request smiling=0.8" in text and "high is 0.5" in text and "What to do" in text
    assert not (tmp_path / "store").exists()
