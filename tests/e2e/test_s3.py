"""All stories on a real S3 server, from the command line: store, sources and releases in their own buckets.

One server, one store and one `sdflow up` for the whole file; its tests run in their order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.server import free_port
from sdflow_core.faces.pixels import pixel_digest, read_png
from sdflow_core.records.digests import TABLES, canonical_digests
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from tests.e2e.machine import FarMachine, within
from tests.e2e.running import ROOT, SMALL, command
from tests.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
Finished = tuple[Path, dict[str, Any]]
HEADER = "source,subject,attributes,expires,evidence\n"
# Two customers, two buckets, two policies. The gates let an editor of 40 steps through: people look at this.
POLICY = """
[[datasets]]
dataset = "us"
source = "s3://faces/PREFIX/us"
consent = "s3://faces/PREFIX/consent.csv"
requests = [{ smiling = "flip" }]
allowed = { smiling = { low = 0.1, high = 0.9 } }
gates = GATES

[[datasets]]
dataset = "eu"
source = "s3://europe/PREFIX/photos"
consent = "lists/consent.csv"
requests = [{ young = "flip" }, { smiling = 0.2 }]
allowed = { young = {}, smiling = { low = 0.1, high = 0.3 } }
gates = GATES
"""
GATES = (
    "{ furthest = 30.0, accepted_error = 1.0, flip_to = 0.51, min_identity = -1.0, max_other_change = 1.0 }"
)


@dataclass
class Place:
    """Where the tests of this file work."""

    machine: FarMachine
    server: S3Server
    prefix: str
    state: Path

    @property
    def store(self) -> Store:
        """The store, as this process sees it."""
        return open_store(self.machine.address)

    def bucket(self, name: str) -> Store:
        """Our corner of a bucket."""
        return open_store(f"s3://{name}/{self.prefix}")

    @property
    def policy(self) -> str:
        """It lies in a bucket, too: what it says of relative paths is relative to that."""
        return f"s3://europe/{self.prefix}/policy.toml"


@pytest.fixture(scope="module")
def place(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server and a worker that run for a store in S3."""
    for bucket in ("europe", "released"):
        s3_server.make_bucket(bucket)
    state, prefix = tmp_path_factory.mktemp("state"), "stories"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        made = FarMachine(f"s3://store/{prefix}", state)
        try:
            assert made.up("--port", str(free_port()))["started"]
            yield Place(made, s3_server, prefix, state)
        finally:
            assert made.sdflow("down")["left_over"] == 0


@pytest.fixture(scope="module")
def demo(place: Place) -> dict[str, Any]:
    """What the small demo printed."""
    return place.machine.sdflow(*SMALL)


@pytest.fixture(scope="module")
def customers(place: Place, demo: dict[str, Any]) -> None:
    """Photographs in two buckets, a consent list in each; one picture stands in none."""
    people = sorted(key for key in place.store.list("demo/photos/person-"))
    assert len(people) == 8
    for number, key in enumerate(people):
        name = key.rpartition("/")[2]
        where, at = (place.bucket("faces"), "us") if number < 4 else (place.bucket("europe"), "photos")
        where.create(f"{at}/{name}", place.store.read(key))
    place.bucket("faces").create("consent.csv", f"{HEADER}*,ann,*,,form\n".encode())
    named = [key.rpartition("/")[2] for key in people[5:]]
    lines = [f"{name},ben,{'young' if name == named[0] else '*'},2099-12-31,form\n" for name in named]
    place.bucket("europe").create("lists/consent.csv", "".join([HEADER, *lines]).encode())
    text = POLICY.replace("PREFIX", place.prefix).replace("GATES", GATES)
    place.bucket("europe").create("policy.toml", text.encode())


@pytest.fixture(scope="module")
def night(place: Place, customers: None) -> dict[str, Any]:
    """What the first night printed."""
    return place.machine.sdflow("nightly", place.policy)


@pytest.fixture(scope="module")
def released(place: Place, night: dict[str, Any]) -> dict[str, Any]:
    """What was released of one customer's night, into a bucket that is neither source nor store."""
    (run,) = night["datasets"][0]["edit_runs"]
    place.machine.sdflow("decide", run, "--approve", "all", "--by", "ann", "--note", "looked at the sheet")
    return place.machine.sdflow("publish", run, "--to", f"s3://released/{place.prefix}/us")


def rows(store: Store, dataset: str, table: str, **of: Any) -> list[dict[str, Any]]:
    return Table(store, dataset, table).read(**of).to_pylist()


def test_the_demo_is_that_of_a_folder(place: Place, demo: dict[str, Any], finished: Finished) -> None:
    here, there = open_store(str(finished[0])), place.store
    mine, other = canonical_digests(here, "demo"), canonical_digests(there, "demo")
    # What is computed from bytes is the same everywhere. A source's identity holds its version as the place
    # of storage tells it: time and size of a file, the tag of an object; edits name the source.
    for table in ("faces", "latents", "labels", "editors"):
        assert mine[table] == other[table], table

    def sources(store: Store) -> list[tuple[str, ...]]:
        columns = ("name", "uri", "status", "reason", "image_id", "consent")
        return sorted(tuple(str(row[name]) for name in columns) for row in rows(store, "demo", "sources"))

    def edits(store: Store) -> list[tuple[str, ...]]:
        columns = ("face_id", "request", "status", "reason", "pixel_sha256")
        return sorted(tuple(str(row[name]) for name in columns) for row in rows(store, "demo", "edits"))

    assert sources(here) == sources(there)
    assert edits(here) == edits(there)
    kept = ("sources", "edits")
    assert {k: v for k, v in demo.items() if k in kept} == {k: v for k, v in finished[1].items() if k in kept}


def test_the_demo_again_calls_no_model_and_changes_nothing(place: Place, demo: dict[str, Any]) -> None:
    before = canonical_digests(place.store, "demo")
    again = place.machine.sdflow(*SMALL)
    assert again["model_calls"] == 0 and again["released"] == demo["released"] != []
    assert canonical_digests(place.store, "demo") == before
    assert any(event["eventType"] == "REUSED" for event in Lineage(place.store).events())


def test_two_customers_in_two_buckets_each_by_its_policy(place: Place, night: dict[str, Any]) -> None:
    us, eu = night["datasets"]
    assert (us["sources"]["kept"], us["sources"]["dropped"]) == (4, 0)
    assert (eu["sources"]["kept"], eu["sources"]["dropped"]) == (3, 1)
    for name, bucket in (("us", f"s3://faces/{place.prefix}/us/"), ("eu", f"s3://europe/{place.prefix}/")):
        assert all(row["uri"].startswith(bucket) for row in rows(place.store, name, "sources"))
    (gone,) = rows(place.store, "eu", "sources", statuses=["dropped"])
    assert gone["name"] == "person-0004.jpg" and "no consent" in gone["reason"]
    assert gone["image_id"] not in {row["image_id"] for row in rows(place.store, "eu", "faces")}

    asked = {name: [row["request"] for row in rows(place.store, name, "edits")] for name in ("us", "eu")}
    assert asked["us"] == ['{"smiling":"flip"}'] * 4
    assert sorted(asked["eu"]) == ['{"smiling":0.2}'] * 3 + ['{"young":"flip"}'] * 3
    (refused,) = [row for row in rows(place.store, "eu", "edits") if row["status"] == "dropped"]
    assert refused["request"] == '{"smiling":0.2}' and "consent" in refused["reason"]
    assert us["edits"]["waiting"] > 0 and eu["edits"]["refused_by_consent"] == 1
    assert night["report"].startswith(place.machine.address)
    # nothing of one customer stands in the other's bucket, and nobody wrote into a source
    assert {key.partition("/")[0] for key in place.bucket("europe").list()} == {
        "lists",
        "photos",
        "policy.toml",
    }


def test_a_night_with_nothing_new_calls_no_model(place: Place, night: dict[str, Any]) -> None:
    before = [canonical_digests(place.store, name) for name in ("us", "eu")]
    again = place.machine.sdflow("nightly", place.policy)
    totals = again["totals"]
    assert totals["model_calls"] == totals["new"] == totals["edited"] == 0
    assert totals["undecided"] == night["totals"]["undecided"] > 0
    assert [canonical_digests(place.store, name) for name in ("us", "eu")] == before


def test_what_was_released_is_what_was_decided_about(
    place: Place, night: dict[str, Any], released: dict[str, Any]
) -> None:
    assert len(released["outputs"]) == night["datasets"][0]["edits"]["waiting"]
    target, edits = (
        place.bucket("released"),
        {row["row_key"]: row for row in rows(place.store, "us", "edits")},
    )
    assert sorted(target.list()) == sorted(f"us/{uri.rpartition('/')[2]}" for uri in released["outputs"])
    for uri in released["outputs"]:
        name = uri.rpartition("/")[2]
        pixels = pixel_digest(read_png(target.read(f"us/{name}")))
        assert pixels == edits[name.removesuffix(".png")]["pixel_sha256"]
    trail = place.machine.sdflow("audit", released["outputs"][0])
    assert trail["picture"]["matches"] == "file" and trail["release"]["uri"] == released["outputs"][0]
    assert trail["source"]["uri"].startswith(f"s3://faces/{place.prefix}/us/")
    assert trail["decision"]["who"] == "ann" and trail["consent"]["valid_today"]
    assert [step["name"] for step in trail["steps"]] == [
        "ingest",
        "invert",
        "label",
        "train",
        "edit",
        "publish",
    ]


def test_from_a_source_to_where_it_went(place: Place, released: dict[str, Any]) -> None:
    name = released["outputs"][0].rpartition("/")[2].removesuffix(".png")
    (source,) = [
        row
        for edit in rows(place.store, "us", "edits")
        for row in rows(place.store, "us", "sources")
        if edit["row_key"] == name and row["source_id"] == edit["source_id"]
    ]
    told = place.machine.sdflow("why", source["name"], "--dataset", "us")
    assert (
        told["status"] == "kept" and f"released to s3://released/{place.prefix}/us/{name}.png" in told["text"]
    )


@pytest.mark.parametrize("target", ["store:private/x", "STORE", "STORE/models", "s3://store//PREFIX/private"])
def test_nothing_is_released_among_the_records(place: Place, released: dict[str, Any], target: str) -> None:
    from sdflow_core.records.errors import ContractError
    from sdflow_core.records.releases import check_release
    from sdflow_core.records.releases import releases as all_releases

    run = next(
        item.edit_run for item in all_releases(place.store) if item.release_id == released["release_id"]
    )
    where = target.replace("STORE", place.machine.address).replace("PREFIX", place.prefix)
    with pytest.raises(ContractError, match="their own place"):
        check_release(place.store, run, where)
    check_release(place.store, run, f"{place.machine.address}/released/more")


def test_records_are_whole_and_nothing_is_left_over(
    place: Place, released: dict[str, Any], tmp_path: Path
) -> None:
    found = place.machine.sdflow("verify")
    assert found["ok"] and {f"private/datasets/{name}/journal" for name in ("us", "eu")} <= set(
        found["heads"]
    )
    heads = tmp_path / "heads.json"
    heads.write_text(json.dumps(found))
    assert place.machine.sdflow("verify", "--heads", str(heads))["ok"]
    place.machine.sdflow("compact", "us")
    left = place.machine.sdflow("gc", "--delete", "--older-than-hours", "0")
    assert set(left["kinds"]) <= {"plans"} and left["removed"] == sum(
        k["count"] for k in left["kinds"].values()
    )
    assert place.machine.sdflow("gc", "--older-than-hours", "0")["kinds"] == {}
    assert place.machine.sdflow("verify")["ok"]


def test_what_people_look_at_is_fetched(place: Place, night: dict[str, Any], tmp_path: Path) -> None:
    run = night["datasets"][0]["edit_runs"][0]
    found = place.machine.sdflow("fetch", run, "--to", str(tmp_path))
    names = {Path(path).relative_to(tmp_path).as_posix() for path in found["files"]}
    assert {f"{run}/sheet.png", f"{run}/sheet-001.png"} == names
    report = place.machine.sdflow("fetch", night["report"], "--to", str(tmp_path))
    assert Path(report["files"][0]) == tmp_path / "index.html"
    assert "<html" in (tmp_path / "index.html").read_text()[:200]


@pytest.mark.long
def test_a_night_that_was_killed_ends_with_the_same_records(
    place: Place, night: dict[str, Any], tmp_path: Path
) -> None:
    text = POLICY.partition('[[datasets]]\ndataset = "eu"')[0].replace("GATES", GATES)
    policy = tmp_path / "policy.toml"
    policy.write_text(text.replace("PREFIX", place.prefix).replace('"us"', '"killed"'))
    process = subprocess.Popen(
        command(place.machine.address, "nightly", str(policy)),
        cwd=ROOT,
        env={**place.machine.environment, "SDFLOW_SHARD_ROWS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    at = "private/datasets/killed/faces/shards/"
    within(200, "the first shard", lambda: process.poll() is not None or any(place.store.list(at)))
    assert process.poll() is None, "the night ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert Table(place.store, "killed", "edits").recipes() == []
    again = place.machine.sdflow("nightly", str(policy))
    assert again["orphans"] and not list(place.store.list("open/"))
    mine, other = (canonical_digests(place.store, name) for name in ("us", "killed"))
    assert {name: mine[name] for name in TABLES} == {name: other[name] for name in TABLES}
    assert place.machine.sdflow("verify", "killed")["ok"]


def test_a_worker_runs_the_night_with_the_credentials_of_up(place: Place, night: dict[str, Any]) -> None:
    before = canonical_digests(place.store, "eu")
    place.machine.sdflow("deploy", "--policy", place.policy, "--cron", "0 2 * * *")
    run = place.machine.ended(place.machine.start("nightly"))
    assert run["state_type"] == "COMPLETED", run["state"]
    assert canonical_digests(place.store, "eu") == before
    last = within(30, "the night in status", lambda: place.machine.sdflow("status")["last_nightly"])
    assert last["state"] == "Completed"


def test_the_doctor_is_content(place: Place, demo: dict[str, Any]) -> None:
    found = place.machine.sdflow("doctor")
    by_name = {check["name"]: check for check in found["checks"]}
    assert found["ok"] and "refused" in by_name["access"]["found"] and by_name["clock"]["ok"]


def test_no_secret_and_no_key_stands_anywhere(place: Place, released: dict[str, Any]) -> None:
    """Run last: lineage, reports, logs, Prefect's database, the state folder."""
    who = place.server.identities[0]
    wanted = (who.key.encode(), who.secret.encode())
    files = [path for path in place.state.rglob("*") if path.is_file()]
    assert any(path.name == "prefect.db" for path in files)
    assert not [path for path in files if any(word in path.read_bytes() for word in wanted)]
    for bucket in ("store", "released"):
        at = place.bucket(bucket)
        assert not [key for key in at.list() if any(word in at.read(key) for word in wanted)]
