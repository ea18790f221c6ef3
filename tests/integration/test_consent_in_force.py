"""The latest consent list is in force: no step computes from a face that nobody consents to now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.testing.utilities import prefect_test_harness

from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import dataset_digest
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from tasks.runtime import CALLS

HEADER = "source,subject,attributes,expires,evidence\n"
TINY = {"training": {"steps": 2, "checkpoint_every": 2}, "prior_samples": 32}


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


class Customer:
    """A folder, a consent list, a store with models, and pictures of people who do not exist."""

    def __init__(self, place: Path) -> None:
        from tasks.demo import install_models, make_people
        from tasks.step import Job

        self.store: Store = open_store(str(place / "store"))
        make_people(install_models(Job(store=self.store.uri, dataset="x", parent="test")), 3)
        self.folder, self.list = place / "photos", place / "consent.csv"
        self.folder.mkdir()

    def person(self, number: int) -> bytes:
        kind = "png" if number % 3 == 2 else "jpg"
        return self.store.read(f"demo/photos/person-{number:04d}.{kind}")

    def ingest(self, *lines: str) -> dict[str, Any]:
        from flows.ingest import ingest

        self.list.write_text(HEADER + "".join(f"{line}\n" for line in lines))
        return ingest("one", str(self.folder), str(self.list), self.store.uri)

    def status(self) -> dict[str, str]:
        rows = Table(self.store, "one", "sources").read(latest_by="uri", columns=["name", "status", "reason"])
        return {row["name"]: f"{row['status']} {row['reason']}".strip() for row in rows.to_pylist()}

    def run(self, story: str, *more: Any) -> dict[str, Any]:
        import importlib

        return getattr(importlib.import_module(f"flows.{story}"), story)("one", *more, store=self.store.uri)


@pytest.fixture
def customer(tmp_path: Path) -> Customer:
    return Customer(tmp_path)


@pytest.mark.parametrize("given", [(False, True, False, True), (True, False, True, False)])
def test_consent_may_come_and_go(given: tuple[bool, ...], customer: Customer) -> None:
    (customer.folder / "ann.jpg").write_bytes(customer.person(0))
    for allowed in given:
        line = "ann.jpg,ann,*,,form" if allowed else "other.jpg,ann,*,,form"
        for _ in range(2):  # the second time nothing is new, and nothing may change
            counts = customer.ingest(line)
            assert (counts["in"], counts["kept"], counts["dropped"]) == (1, int(allowed), int(not allowed))
        assert counts["new"] == 0


def test_no_step_uses_a_face_whose_consent_was_withdrawn_or_has_ended(customer: Customer) -> None:
    for number, name in enumerate(("ann", "bob", "eve")):
        (customer.folder / f"{name}.jpg").write_bytes(customer.person(number))
    customer.ingest("*,all,*,,form")
    assert customer.run("invert")["kept"] == customer.run("label")["kept"] == 3
    first = customer.run("train", TINY)
    tomorrow = (datetime.now(UTC).date() + timedelta(days=1)).isoformat()
    assert customer.ingest("ann.jpg,ann,*,,form", f"eve.jpg,eve,*,{tomorrow},form")["kept"] == 2
    assert customer.run("invert")["kept"] == customer.run("label")["kept"] == 2
    second = customer.run("train", TINY)
    assert second["editor"] != first["editor"]
    editors = Table(customer.store, "one", "editors").read().to_pylist()
    latents = Table(customer.store, "one", "latents").read().to_pylist()
    bob = Table(customer.store, "one", "sources").read(latest_by="uri", statuses=["dropped"]).to_pylist()[0]
    withdrawn = f"{bob['image_id']}#0"
    assert withdrawn in {row["face_id"] for row in latents}, "what was computed before stays on record"
    left = dataset_digest(row["row_key"] for row in latents if row["face_id"] != withdrawn)
    assert [row["inputs"][0] for row in editors] == [dataset_digest(r["row_key"] for r in latents), left]


def test_edit_refuses_what_ended_since_and_says_so(
    customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.edit_plan

    (customer.folder / "ann.jpg").write_bytes(customer.person(0))
    (customer.folder / "bob.jpg").write_bytes(customer.person(1))
    today = datetime.now(UTC).date()
    customer.ingest("ann.jpg,ann,*,,form", f"bob.jpg,bob,*,{today.isoformat()},form")
    customer.run("invert")
    customer.run("label")
    customer.run("train", TINY)
    monkeypatch.setattr(tasks.edit_plan, "today", lambda: today + timedelta(days=1))
    facts = customer.run("edit", [{"smiling": "flip"}])
    rows = Table(customer.store, "one", "edits").read().to_pylist()
    dropped = [row for row in rows if row["status"] == "dropped"]
    assert facts["n"] == 2 and [row["reason"] for row in dropped] == [f"consent ended on {today.isoformat()}"]
    assert not dropped[0]["output"]


def test_a_source_that_left_the_folder_still_hears_of_its_consent(customer: Customer) -> None:
    for number, name in enumerate(("ann", "bob")):
        (customer.folder / f"{name}.jpg").write_bytes(customer.person(number))
    customer.ingest("*,all,*,,form")
    (customer.folder / "bob.jpg").unlink()
    (customer.folder / "cy.jpg").write_bytes(customer.person(2))
    CALLS.clear()
    assert customer.ingest("*,all,*,,form")["kept"] == 3
    assert CALLS["detector"] == 1
    CALLS.clear()
    assert customer.ingest("[ac]*,all,*,,form")["kept"] == 2
    assert customer.status()["bob.jpg"] == "dropped no consent for this source"
    assert customer.ingest("*,all,*,,form")["kept"] == 2, "it is not there to be kept again"
    assert CALLS["detector"] == 0, "a word about bytes that were judged before costs no look at them"
    with pytest.raises(ContractError, match="no faces"):
        customer.ingest("none*,x,*,,form")
        customer.run("invert")


def test_a_replaced_file_is_one_source_and_its_old_version_is_out(customer: Customer) -> None:
    ann = customer.folder / "ann.jpg"
    ann.write_bytes(customer.person(0))
    (customer.folder / "bob.jpg").write_bytes(customer.person(2))
    customer.ingest("*,all,*,,form")
    customer.run("invert")
    for number in (1, 0, 1):  # also back to bytes that were seen before
        ann.write_bytes(customer.person(number))
        counts = customer.ingest("*,all,*,,form")
        assert (counts["in"], counts["kept"], counts["new"]) == (2, 2, 1)
        assert customer.ingest("*,all,*,,form")["new"] == 0
        assert customer.run("invert")["in"] == 2
    CALLS.clear()
    os.utime(ann, ns=(1, 1))
    assert customer.ingest("*,all,*,,form")["kept"] == 2
    assert customer.ingest("*,all,*,,form")["new"] == 0, "another time, the same bytes: looked at once"
    assert CALLS["detector"] == 0


def test_ingest_tells_which_lines_of_the_list_do_nothing(customer: Customer) -> None:
    (customer.folder / "ann.jpg").write_bytes(customer.person(0))
    remarks = " ".join(customer.ingest("ann.jpg,ann,smilling;young,,form", "anne.jpg,ann,*,,form")["remarks"])
    assert "fit no file: 3" in remarks and "smilling" in remarks and "anne" not in remarks
    assert customer.ingest("ann.jpg,ann,*,,form")["remarks"] == []
    assert "no line" in customer.ingest()["remarks"][0]
