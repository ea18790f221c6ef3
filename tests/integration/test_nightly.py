"""Nights on a real Prefect server: several datasets, one broken, one bundle, and everything only once."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.testing.utilities import prefect_test_harness

from sdflow_core.records.decisions import decide, load_edit_run
from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.errors import ContractError
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.policy import NightlyPolicy
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundles
from tests.nights import prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def base(_server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with models and an editor that can do little; its demo folder holds photographs."""
    path = tmp_path_factory.mktemp("base") / "store"
    prepare(str(path), 2, people=6, prior_samples=16)
    return path


@pytest.fixture
def opened(base: Path, tmp_path: Path) -> Store:
    return open_store(str(shutil.copytree(base, tmp_path / "copy")))


@pytest.fixture
def photos(base: Path, tmp_path: Path) -> Path:
    """Two photographs; `more` of the base's can be added."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (0, 1):
        shutil.copy(base / f"demo/photos/person-{number:04d}.jpg", folder)
    return folder


def part(name: str, photos: Path, **changes: Any) -> dict[str, Any]:
    consent = photos.parent / f"{name}.csv"
    if not consent.exists():
        consent.write_text("source,subject,attributes,expires,evidence\n*,ann,*,,form\n")
    allowed = {"smiling": {"high": 0.9}, "young": {}}
    given = {"dataset": name, "source": str(photos), "consent": str(consent)}
    return {**given, "requests": [{"smiling": 0.8}], "allowed": allowed, **changes}


def run(store: Store, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    from flows.nightly import nightly

    return nightly(NightlyPolicy.model_validate({"datasets": parts, **more}), store.uri)


def calls() -> int:
    from tasks.runtime import CALLS

    return sum(CALLS.values())


def report_of(store: Store) -> tuple[dict[str, Any], str]:
    """The latest report: its twin and its page."""
    keys = [key for key in store.list("private/reports/nightly/") if key.endswith("report.json")]
    found = [(json.loads(store.read(key)), key) for key in keys]
    latest, key = max(found, key=lambda item: str(item[0]["time"]) + str(store.stat(item[1]).mtime_ns))
    return latest, store.read(key.replace("report.json", "index.html")).decode()


def edits(store: Store, dataset: str) -> list[dict[str, Any]]:
    return Table(store, dataset, "edits").read().to_pylist()


def test_two_datasets_each_by_its_own_policy(opened: Store, photos: Path) -> None:
    one = part("one", photos)
    two = part("two", photos, requests=[{"smiling": 0.1, "young": 0.9}], gates={"furthest": 2.5})
    (photos.parent / "two.csv").write_text(
        "source,subject,attributes,expires,evidence\n*,ann,smiling,,form\n"
    )
    three = part("three", photos, enabled=False)
    before = calls()
    facts = run(opened, one, two, three)
    assert [p["state"] for p in facts["datasets"]] == ["done", "done", "off"]
    assert {row["request"] for row in edits(opened, "one")} == {'{"smiling":0.8}'}
    assert {row["status"] for row in edits(opened, "one")} <= {"waiting", "gated"}
    assert [(r["status"], r["reason"]) for r in edits(opened, "two")] == [
        ("dropped", "consent does not cover young")
    ] * 2
    assert facts["totals"]["in"] == facts["totals"]["new"] == 4
    assert facts["totals"]["refused_by_consent"] == facts["totals"]["edited"] == 2
    assert facts["totals"]["model_calls"] == calls() - before > 0
    assert not list(opened.list("private/datasets/three/"))
    assert not list(opened.list("releases/"))  # a night publishes nothing
    twin, html = report_of(opened)
    assert twin["datasets"] == facts["datasets"] and facts["report"].endswith("index.html")
    assert "person-0000" not in html + json.dumps(twin) and str(photos) not in html + json.dumps(twin)


def test_prefect_is_shown_a_link_and_figures_but_no_face(opened: Store, photos: Path) -> None:
    from prefect.client.orchestration import get_client

    facts = run(opened, part("linked", photos))

    async def latest() -> str:
        async with get_client() as client:
            found = await client.read_artifacts()
        return next(
            f"{a.data} {a.description}"
            for a in found
            if a.key == "sdflow-nightly" and facts["report"] in str(a.data)
        )

    shown = asyncio.run(latest())
    assert "linked | done | 2 | 2 |" in shown
    assert "person-" not in shown and "base64" not in shown and str(photos) not in shown


def test_a_broken_dataset_is_told_and_stops_no_other(opened: Store, photos: Path) -> None:
    gone, unknown = photos.parent / "nowhere", {"requests": [{"beard": 0.5}], "allowed": {"beard": {}}}
    with pytest.raises(ContractError, match="2 of 3 datasets broke") as caught:
        run(opened, part("gone", gone), part("beards", photos, **unknown), part("fine", photos))
    assert "gone in ingest" in str(caught.value) and "beard" in str(caught.value)
    assert len(edits(opened, "fine")) == 2
    assert not list(opened.list("private/datasets/beards/"))  # refused before a picture was read
    twin, html = report_of(opened)
    assert twin["status"] == "broken"
    assert [p["state"] for p in twin["datasets"]] == ["broken", "broken", "done"]
    assert "broke in ingest" in html and "2 of 3 broke" in html
    ended = {
        (e["job"]["name"], e["eventType"]): e for e in Lineage(opened).events() if e["eventType"] != "START"
    }
    assert ("nightly", "FAIL") in ended and ("dataset of a night", "FAIL") in ended
    nights = {e["run"]["runId"] for e in Lineage(opened).events() if e["job"]["name"] == "nightly"}
    fine = ended["dataset of a night", "COMPLETE"]
    assert {fine["run"]["facets"]["parent"]["run"]["runId"]} == nights


def test_nothing_new_calls_no_model_and_changes_nothing(opened: Store, photos: Path, base: Path) -> None:
    run(opened, part("one", photos))
    digests, before = canonical_digests(opened, "one"), calls()
    again = run(opened, part("one", photos))
    assert calls() == before and again["totals"]["model_calls"] == 0 == again["totals"]["new"]
    assert canonical_digests(opened, "one") == digests
    assert again["datasets"][0]["edit_runs"] == []
    shutil.copy(base / "demo/photos/person-0003.jpg", photos)
    third = run(opened, part("one", photos))["datasets"][0]
    assert (third["sources"]["new"], third["new_latents"], third["new_labels"]) == (1, 1, 1)
    assert third["model_calls"]["detector"] == third["model_calls"]["encoder"] == 1
    assert third["edits"]["new"] == 1 and third["model_calls"]["identity"] == 2


def test_what_was_rejected_is_not_put_before_people_again(opened: Store, photos: Path, base: Path) -> None:
    gates = {"gates": {"min_identity": -1.0, "max_other_change": 1.0}, "requests": [{"smiling": "flip"}]}
    open_to_all = part("one", photos, **gates, allowed={"smiling": {}})
    (first,) = run(opened, open_to_all)["datasets"][0]["edit_runs"]
    old = load_edit_run(opened, first).edit_ids
    decide(opened, first, reject=old, who="ann")
    shutil.copy(base / "demo/photos/person-0003.jpg", photos)
    night = run(opened, open_to_all)
    (second,) = night["datasets"][0]["edit_runs"]
    new = load_edit_run(opened, second).edit_ids
    assert len(new) == 1 and not set(new) & set(old)
    assert all(waiting["edit_run"] != first for waiting in night["waiting"])


def test_a_night_finishes_the_run_that_a_killed_one_announced(
    opened: Store, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.bodies as bodies

    class Plug(BaseException):
        """Pulled: no handler of ours may see it."""

    def pulled(*_: Any) -> Any:
        raise Plug

    with monkeypatch.context() as patch, pytest.raises(Plug):
        patch.setattr(bodies, "edit_shard", pulled)
        run(opened, part("one", photos))
    (left,) = [key for key in opened.list("private/edit_runs/") if b'"one"' in opened.read(key)]
    with monkeypatch.context() as patch, pytest.raises(Plug):
        patch.setattr(bodies, "contact_sheet", pulled)
        run(opened, part("one", photos))
    assert len(edits(opened, "one")) == 2
    done = run(opened, part("one", photos))
    assert done["datasets"][0]["edit_runs"] == [left.rpartition("/")[2].removesuffix(".json")]
    assert done["totals"]["model_calls"] == 0
    assert opened.exists(left.replace(".json", "/sheet.png"))
    assert [key for key in opened.list("private/edit_runs/") if key.endswith(".json")].count(left) == 1


def test_a_bundle_promoted_during_the_night_is_for_the_next(opened: Store, photos: Path) -> None:
    from tasks.runtime import listening

    bundles = Bundles(opened)
    pinned = bundles.current()
    assert pinned is not None

    def promote(what: str, done: int, total: int) -> None:
        bundles.promote(pinned.model_copy(update={"editor": None}), "test", "in the middle of the night")

    with listening(promote):
        facts = run(opened, part("one", photos), part("two", photos))
    assert facts["bundle"] == pinned.digest != facts["bundle_now"]
    assert len(edits(opened, "one")) == len(edits(opened, "two")) == 2
    assert any("during the night" in step["text"] for step in facts["todo"])
    assert {name["bundle"] for name in facts["datasets"]} == {pinned.digest}
    following = run(opened, part("one", photos))  # models without an editor wait for their refresh
    assert [name["bundle"] for name in following["datasets"]] == [pinned.digest]
    assert following["totals"]["model_calls"] == 0
    assert "sdflow refresh one" in [step["command"] for step in following["todo"]]


def test_a_failed_row_is_tried_again_and_a_dropped_one_is_not(
    opened: Store, photos: Path, base: Path
) -> None:
    (photos / "text.jpg").write_text("no picture")
    link = photos / "late.jpg"
    link.symlink_to(photos.parent / "not there yet.jpg")
    first = run(opened, part("one", photos))["datasets"][0]["sources"]
    assert (first["in"], first["kept"], first["dropped"], first["failed"]) == (4, 2, 1, 1)
    second = run(opened, part("one", photos))["datasets"][0]
    assert (second["sources"]["new"], second["sources"]["failed"], second["model_calls"]) == (1, 1, {})
    shutil.copy(base / "demo/photos/person-0003.jpg", photos.parent / "not there yet.jpg")
    third = run(opened, part("one", photos))["datasets"][0]
    assert third["sources"]["new"] == third["edits"]["new"] == 1
    assert third["sources"]["kept"] == 3


def test_a_bad_policy_is_refused_by_prefect_and_nothing_is_written(tmp_path: Path) -> None:
    from flows.nightly import nightly

    store = tmp_path / "untouched"
    bad = {"datasets": [part("one", tmp_path / "photos", requests=[{"smiling": 0.95}])]}
    with pytest.raises(Exception, match=r"dataset one: request smiling=0.95 asks for 0.95, high is 0.9"):
        nightly(bad, str(store))  # pyright: ignore[reportArgumentType]
    assert not store.exists()


def test_every_row_goes_once_through_every_network(
    opened: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from PIL import Image

    from flows.ingest import ingest
    from flows.invert import invert
    from flows.label import label
    from tasks.runtime import networks_from
    from tests.fakes import FakeNetworks

    monkeypatch.setenv("SDFLOW_SHARD_ROWS", "8")
    (folder := tmp_path / "tiny").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    consent = tmp_path / "tiny.csv"
    consent.write_text("source,subject,attributes,expires,evidence\n*,ann,*,,form\n")
    made: list[FakeNetworks] = []

    def fakes(bundle: Any) -> FakeNetworks:
        made[:] = made or [FakeNetworks(bundle)]
        return made[0]

    with networks_from(fakes):
        for _ in range(2):  # the second time nothing is left to do
            ingest("tiny", str(folder), str(consent), opened.uri)
            invert("tiny", opened.uri)
            label("tiny", opened.uri)
    assert made[0].rows == dict.fromkeys(("detector", "encoder", "generator", "labeller"), 20)
    assert made[0].calls["encoder"] == 3
    assert Table(opened, "tiny", "labels").ref().rows == 20
