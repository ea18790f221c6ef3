"""Deployments on one machine: a real server and worker, supervised; events, schedules, limits, kills."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.server import free_port
from sdflow_core.records.journal import Journal
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from tests.e2e.machine import Machine, within

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
PEOPLE = 12
POLICY = """
[[datasets]]
dataset = "team"
source = "photos"
consent = "consent.csv"
requests = [{smiling = 0.8}]
allowed = {smiling = {high = 0.9}}
enabled = false
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the embedded models in force, a folder of people who do not exist, a policy beside it."""
    import torch
    from PIL import Image

    from sdflow_core.faces.networks import Networks, to_uint8
    from sdflow_core.weights.embedded import accept_for_demo, install_embedded
    from sdflow_core.weights.model_store import Bundles, ModelStore
    from tasks.demo import photograph

    place = tmp_path_factory.mktemp("machine")
    store = open_store(str(place / "store"))
    accept_for_demo(store)
    bundle = install_embedded(store)
    Bundles(store).promote(bundle, "test", "first")
    networks = Networks(ModelStore(store), bundle)
    images = networks.render(networks.prior.sample(PEOPLE, torch.Generator().manual_seed(3), truncation=0.7))
    (place / "photos").mkdir()
    for number, pixels in enumerate(to_uint8(images)):
        Image.fromarray(photograph(pixels)).save(place / f"photos/{number:02d}.png")
    (place / "consent.csv").write_text("source,subject,attributes,expires,evidence\n*,ann,*,,form\n")
    (place / "policy.toml").write_text(POLICY)
    return place


@pytest.fixture(scope="module")
def machine(folder: Path) -> Iterator[Machine]:
    """Up and deployed. A shard is one picture, so that there are many moments to kill at."""
    made = Machine(folder / "store", SDFLOW_SHARD_ROWS="1")
    try:
        assert made.up("--port", str(free_port()))["started"]
        said = made.sdflow("deploy", "--policy", str(folder / "policy.toml"), "--timezone", "Europe/Berlin")
        assert said["limits"] == {"sdflow-gpu": 1}
        made.deploy_test_flow("small-night", "tests.e2e.small_night.small_night")
        yield made
    finally:
        made.sdflow("down")
    assert not made.processes()


def night(folder: Path, dataset: str) -> dict[str, Any]:
    return {"dataset": dataset, "photos": str(folder / "photos"), "consent": str(folder / "consent.csv")}


def shards(store: Path, dataset: str, table: str) -> int:
    return len(list(store.glob(f"private/datasets/{dataset}/{table}/shards/*.parquet")))


def rows(store: Store, dataset: str, table: str) -> dict[str, str]:
    """row key -> run that computed it."""
    found = Table(store, dataset, table).read(columns=["row_key", "run"]).to_pylist()
    assert len({row["row_key"] for row in found}) == len(found)
    return {row["row_key"]: row["run"] for row in found}


@pytest.fixture(scope="module")
def killed(machine: Machine, folder: Path) -> tuple[str, str, dict[str, str]]:
    """A run whose worker was killed with all its children in the middle, and the next run."""
    first = machine.start("small-night", night(folder, "killed"))
    within(120, "the first shard", lambda: shards(machine.store, "killed", "faces") >= 2)
    server = machine.record()["parts"]["server"]["pid"]
    for process in machine.processes():
        if os.getpgid(process) != server and process != machine.record()["supervisor"]:
            os.kill(process, signal.SIGKILL)
    held = rows(open_store(str(machine.store)), "killed", "faces")
    assert 0 < len(held) < PEOPLE, "killed too late to prove anything"
    return first, machine.start("small-night", night(folder, "killed")), held


def test_deploying_again_changes_nothing(machine: Machine, killed: object) -> None:
    kept = ("id", "name", "entrypoint", "parameters", "job_variables", "concurrency_limit", "tags")

    def told() -> tuple[list[Any], list[Any], list[Any]]:
        found = sorted(machine.ask("/deployments/filter", {}), key=lambda item: item["name"])
        schedules = {item["name"]: [each["schedule"] for each in item["schedules"]] for item in found}
        deployments = [
            {**{key: item[key] for key in kept}, "when": schedules[item["name"]]} for item in found
        ]
        limits = [(item["name"], item["limit"]) for item in machine.ask("/v2/concurrency_limits/filter", {})]
        automations = [(item["name"], item["enabled"]) for item in machine.ask("/automations/filter", {})]
        return deployments, sorted(limits), sorted(automations)

    before = told()
    assert [d["name"] for d in before[0]] == ["nightly", "publish", "refresh", "small-night", "verify"]
    assert len(before[2]) == 2
    said = machine.sdflow("deploy")
    assert told() == before
    assert said["deployments"][0]["schedules"] == ["0 2 * * * Europe/Berlin"]
    source = before[0][0]["parameters"]["policy"]["datasets"][0]["source"]
    assert Path(source).is_absolute(), "the worker runs somewhere else"


def test_a_bad_value_is_refused_with_field_reason_and_bound(machine: Machine) -> None:
    def refused(name: str, parameters: dict[str, Any]) -> str:
        identity = machine.deployment(name)["id"]
        return machine.ask(f"/deployments/{identity}/create_flow_run", {"parameters": parameters}, code=409)

    text = refused("verify", {"policy": {"min_free_gb": -3}})
    assert "policy.min_free_gb" in text and "-3" in text and "minimum of 0" in text
    policy = machine.deployment("nightly")["parameters"]["policy"]
    policy["datasets"][0]["allowed"]["smiling"]["high"] = 1.5
    text = refused("nightly", {"policy": policy})
    assert "allowed.smiling.high" in text and "1.5" in text and "maximum of 1" in text


def test_a_promotion_starts_refresh(machine: Machine) -> None:
    machine.emit("sdflow.bundle.promoted", bundle="ab" * 32)
    found = within(60, "a run of refresh", lambda: machine.runs("refresh"))
    assert [run["parameters"]["bundle"] for run in found] == ["ab" * 32]
    assert found[0]["created_by"]["type"] == "AUTOMATION"


def test_verify_completes_and_names_what_is_broken(machine: Machine, tmp_path: Path) -> None:
    good = machine.start("verify", {"policy": {"min_free_gb": 0}})
    broken = open_store(str(tmp_path / "broken"))
    Journal(broken, "notes").append("note", {"text": "hello"})
    Journal(broken, "notes").append("note", {"text": "again"})
    entry = tmp_path / "broken/notes/0000000001.json"
    entry.write_bytes(entry.read_bytes().replace(b"hello", b"hullo"))
    bad = machine.start("verify", {"store": broken.uri})
    assert machine.ended(good)["state_type"] == "COMPLETED"
    found = machine.ended(bad)
    assert found["state_type"] == "FAILED"
    assert entry.parent.name in found["state"]["message"] and "restore" in found["state"]["message"]


def test_a_schedule_fires(machine: Machine) -> None:
    machine.sdflow("deploy", "--cron", "* * * * *")

    def look() -> list[dict[str, Any]]:
        return [r for r in machine.runs("nightly") if r["auto_scheduled"] and r["state_type"] == "COMPLETED"]

    within(150, "a scheduled night that completed", look)
    said = machine.sdflow("deploy", "--cron", "0 2 * * *")
    assert said["deployments"][0]["schedules"] == ["0 2 * * * Europe/Berlin"]
    status = machine.sdflow("status")
    assert status["last_nightly"]["state"] == "Completed"
    assert status["worker"]["state"] == "ONLINE"
    assert (
        within(60, "the next night", lambda: machine.sdflow("status")["next_nightly"])["state"] == "Scheduled"
    )


def test_a_missing_limit_is_an_error_with_what_to_do(machine: Machine, folder: Path) -> None:
    variables = machine.deployment("small-night")["job_variables"]
    variables["env"]["SDFLOW_GPU_LIMIT"] = "nobody-made-this"
    identity = machine.start("small-night", night(folder, "unlimited"), job_variables=variables)
    found = machine.ended(identity)
    assert found["state_type"] == "FAILED"
    assert "nobody-made-this" in found["state"]["message"] and "sdflow deploy" in found["state"]["message"]
    assert not shards(machine.store, "unlimited", "faces")


def test_two_nights_at_once_never_hold_the_device_together(machine: Machine, folder: Path) -> None:
    pair = [machine.start("small-night", night(folder, name)) for name in ("one", "two")]
    assert [machine.ended(identity)["state_type"] for identity in pair] == ["COMPLETED"] * 2
    nights, batches = held_by(open_store(str(machine.store)), ("one", "two"))
    (_, first_end), (second_start, _) = sorted(nights)
    assert second_start < first_end, "they did not run at the same time, so this proves nothing"
    assert len(batches) == 6
    for (_, end), (start, _) in zip(sorted(batches), sorted(batches)[1:], strict=False):
        assert end < start


def held_by(store: Store, datasets: tuple[str, ...]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(start, end) of the nights of these datasets, and of their batches of shards."""
    spans: dict[str, list[str]] = {}
    about: dict[str, tuple[str, str]] = {}
    for event in Lineage(store).events():
        run = event["run"]["runId"]
        parent = event["run"]["facets"].get("parent", {}).get("run", {}).get("runId", "")
        spans.setdefault(run, []).append(event["eventTime"])
        about[run] = (event["job"]["name"], parent)
    mine = {run for name in datasets for run in rows(store, name, "faces").values()}
    stories = {about[run][1] for run in mine}
    nights = {about[run][1] for run in stories}
    batches: dict[str, list[str]] = {}
    for run, (job, parent) in about.items():
        if about.get(parent, ("", ""))[0] == job and about[parent][1] in nights:
            batches.setdefault(parent, []).extend(spans[run])
    return (
        [(min(spans[run]), max(spans[run])) for run in nights],
        [(min(times), max(times)) for times in batches.values()],
    )


def test_commands_use_the_running_server(machine: Machine) -> None:
    machine.sdflow("label", "one")
    found = machine.ask("/flow_runs/filter", {"flows": {"name": {"any_": ["label"]}}})
    alone = [run for run in found if run["parent_task_run_id"] is None]
    assert [run["state_type"] for run in alone] == ["COMPLETED"]


def test_the_next_run_finishes_what_a_killed_worker_left(
    machine: Machine, folder: Path, killed: tuple[str, str, dict[str, str]]
) -> None:
    first, second, held = killed
    assert machine.ended(second)["state_type"] == "COMPLETED"
    store = open_store(str(machine.store))
    for table in ("faces", "latents", "labels"):
        assert len(rows(store, "killed", table)) == PEOPLE
    assert held.items() <= rows(store, "killed", "faces").items(), "a row was computed twice"
    # the server hears no heartbeat any more, and says so
    found = machine.ended(first, 240)
    assert found["state_type"] == "CRASHED" and "heartbeat" in found["state"]["message"]


def test_a_killed_server_is_started_again(machine: Machine) -> None:
    before = machine.record()["parts"]["server"]
    os.kill(before["pid"], signal.SIGKILL)
    after = within(
        90, "another server", lambda: machine.record()["parts"]["server"]["starts"] > before["starts"]
    )
    assert after
    status = machine.sdflow("up")
    assert not status["started"]
    assert machine.ended(machine.start("verify", {"policy": {"min_free_gb": 0}}))["state_type"] == "COMPLETED"


def test_a_killed_supervisor_leaves_nobody_and_can_be_replaced(machine: Machine) -> None:
    port = machine.url.rpartition(":")[2]
    os.kill(machine.record()["supervisor"], signal.SIGKILL)
    assert machine.sdflow("status", code=2)["running"] is False
    within(60, "the end of its children", lambda: not machine.processes())
    said = machine.up()
    assert said["started"] and said["url"].rpartition(":")[2] == port
    assert machine.deployment("nightly")["parameters"]["policy"], "what was deployed is still there"


def test_down_leaves_nobody_behind(machine: Machine, folder: Path) -> None:
    identity = machine.start("small-night", night(folder, "interrupted"))
    within(120, "a shard", lambda: shards(machine.store, "interrupted", "faces"))
    assert machine.sdflow("down") == {"stopped": True, "left_over": 0}
    assert not machine.processes()
    status = machine.sdflow("status")
    assert (status["running"], status["ok"]) == (False, True)
    assert machine.sdflow("down") == {"stopped": False, "left_over": 0}
    with sqlite3.connect(machine.up_folder / "prefect.db") as database:
        (ended,) = database.execute("select state_type from flow_run where id = ?", (identity,)).fetchone()
    assert ended == "CRASHED", "the server was told before it ended"
    # no process writes any more
    before = shards(machine.store, "interrupted", "faces")
    time.sleep(1)
    assert shards(machine.store, "interrupted", "faces") == before
