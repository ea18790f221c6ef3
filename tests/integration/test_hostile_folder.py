"""The real `ingest` over a folder of everything that can be wrong, and over one that does not lie still."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.testing.utilities import prefect_test_harness

from sdflow_core.faces.pixels import read_png, read_text
from sdflow_core.records import sources
from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.keys import sha256_hex
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from tests.hostile import BYSTANDERS, CASES, bound_by_permissions, consent_list, remove, write_cases
from tests.hostile_files import Case, People
from tests.hostile_races import RACES, Race, reading_with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MEMORY_LIMIT_KB = 1_000_000  # more than before, whatever the case


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    """Pictures uint8 [288, 288, 3] of people who do not exist."""
    import torch

    from sdflow_core.faces.networks import Networks, to_uint8
    from sdflow_core.weights.embedded import install_embedded
    from sdflow_core.weights.model_store import ModelStore
    from tasks.demo import photograph

    store = open_store(str(tmp_path_factory.mktemp("models") / "store"))
    networks = Networks(ModelStore(store), install_embedded(store))
    codes = networks.prior.sample(3, torch.Generator().manual_seed(20), truncation=0.75)
    return [photograph(pixels) for pixels in to_uint8(networks.render(codes))]


@dataclass(frozen=True)
class Night:
    """What a night gave: its counts, the rows in force by name, what it printed."""

    counts: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    digests: Any
    calls: int
    printed: str


@dataclass(frozen=True)
class Ingested:
    """The folder after two nights."""

    root: Path
    consent: Path
    store: Store
    nights: list[Night]
    grown_kb: int | None
    before: dict[str, tuple[str, int]]
    bound: bool


def rows_of(store: Store, dataset: str) -> dict[str, dict[str, Any]]:
    """The latest row of every name."""
    return {row["name"]: row for row in Table(store, dataset, "sources").read(latest_by="uri").to_pylist()}


def memory_kb(field: str) -> int:
    """A field of this process's status: VmRSS, VmHWM."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def grown_kb(work: Callable[[], None]) -> int | None:
    """How far the memory of this process rose above where it was; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        work()
        return None
    before = memory_kb("VmRSS")
    work()
    return memory_kb("VmHWM") - before


def a_night(dataset: str, root: Path, consent: Path, store: Store, capture: Any) -> Night:
    """Runs the story once."""
    from flows.ingest import ingest
    from tasks.runtime import CALLS

    calls = sum(CALLS.values())
    capture.readouterr()
    counts = ingest(dataset, str(root), str(consent), store.uri)
    printed = "".join(capture.readouterr())
    return Night(
        counts,
        rows_of(store, dataset),
        canonical_digests(store, dataset),
        sum(CALLS.values()) - calls,
        printed,
    )


def originals(root: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every plain file that is not very large."""
    found: dict[str, tuple[str, int]] = {}
    for case in CASES:
        at = os.fsencode(case.at(root))
        if os.path.isfile(at) and not os.path.islink(at) and os.stat(at).st_size < 10_000_000:
            with open(at, "rb") as file:
                found[case.name] = (sha256_hex(file.read()), os.stat(at).st_mtime_ns)
    return found


class Captured:
    """What was printed since last asked, on either stream, also by libraries in C."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._manager: Any = request.config.pluginmanager.getplugin("capturemanager")

    def readouterr(self) -> tuple[str, str]:
        out, err = self._manager.read_global_capture()
        return out, err


@pytest.fixture(scope="module")
def ingested(
    people: People, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Ingested]:
    """Two nights over the folder with all cases; the store lies inside it."""
    from tasks.demo import install_models
    from tasks.step import Job

    home = tmp_path_factory.mktemp("hostile")
    root, consent = home / "photos", home / "consent.csv"
    root.mkdir()
    write_cases(root, people)
    consent.write_bytes(consent_list())
    store = open_store(str(root / "names" / "our store"))
    install_models(Job(store=store.uri, dataset="hostile", parent="test"))
    before = originals(root)
    nights: list[Night] = []
    with bound_by_permissions() as bound, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDFLOW_SHARD_ROWS", "60")
        captured = Captured(request)
        grown = grown_kb(lambda: nights.append(a_night("hostile", root, consent, store, captured)))
        nights.append(a_night("hostile", root, consent, store, captured))
    yield Ingested(root, consent, store, nights, grown, before, bound)
    remove(root)


def row_of(rows: dict[str, dict[str, Any]], case: Case) -> dict[str, Any] | None:
    """The case's own row."""
    if case.name.endswith("*"):
        found = [row for name, row in rows.items() if name.startswith(case.name[:-1])]
        assert len(found) == 1
        return found[0]
    return rows.get(case.name)


@pytest.mark.parametrize("case", CASES, ids=[f"{number:03d}" for number in range(len(CASES))])
def test_every_case_has_its_status_and_reason(ingested: Ingested, case: Case) -> None:
    if case.path.startswith(b"closed/") and not ingested.bound:
        pytest.skip("this process may read everything, and cannot give that up")
    rows = ingested.nights[0].rows
    if case.status == "absent":
        assert not [name for name in rows if name.startswith(case.name)]
        return
    row = row_of(rows, case)
    assert row is not None, f"no row for {case.name[:99]!r}"
    assert row["status"] == case.status and re.fullmatch(case.reason, row["reason"]), (case, row["reason"])


def test_everything_is_counted_once(ingested: Ingested) -> None:
    night = ingested.nights[0]
    wanted = Counter(case.status for case in CASES) + Counter(["kept"] * len(BYSTANDERS))
    del wanted["absent"]
    assert night.counts["in"] == len(night.rows) == sum(wanted.values()) == night.counts["new"]
    assert not [name for name in night.rows if "our store" in name]
    if ingested.bound:
        assert {status: night.counts[status] for status in wanted} == wanted
    assert Counter(row["status"] for row in night.rows.values()) == {
        status: night.counts[status] for status in ("kept", "dropped", "failed")
    }


def test_the_second_night_computes_only_what_failed(ingested: Ingested) -> None:
    first, second = ingested.nights
    assert second.counts == {**first.counts, "new": first.counts["failed"]}
    assert second.digests == first.digests
    assert first.calls > 0 and second.calls == 0
    assert {name: row["row_key"] for name, row in second.rows.items()} == {
        name: row["row_key"] for name, row in first.rows.items()
    }


def test_originals_are_only_read(ingested: Ingested) -> None:
    assert len(ingested.before) > 150
    assert originals(ingested.root) == ingested.before


def test_no_case_takes_much_memory(ingested: Ingested) -> None:
    if ingested.grown_kb is None:
        pytest.skip("this system does not tell the peak of a process's memory")
    assert ingested.grown_kb < MEMORY_LIMIT_KB


def test_nothing_private_is_told(ingested: Ingested) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        told = [artifact.model_dump_json() for artifact in client.read_artifacts()]
        assert told, "the night leaves a report"
        told += [run.name + str(run.state) for run in client.read_task_runs(limit=200)]
        told += [log.message for log in client.read_logs(limit=200)]
    told += [night.printed for night in ingested.nights]
    words = {case.name.rstrip("*/").rpartition("/")[2] for case in CASES} - {"up"}
    assert not [word[:50] for word in words if any(word in text for text in told)]
    reasons = [row["reason"] for row in ingested.nights[0].rows.values()]
    assert not [reason for reason in reasons if "/" in reason or "Error" in reason or "\n" in reason]


def crop_of(ingested: Ingested, name: str) -> tuple[bytes, Any]:
    """File and pixels [64, 64, 3] of a kept source's face."""
    row = ingested.nights[0].rows[name]
    faces = Table(ingested.store, "hostile", "faces").read().to_pylist()
    (key,) = [face["crop"] for face in faces if face["face_id"] == row["face_id"]]
    data = ingested.store.read(key)
    return data, read_png(data).astype(float)


@pytest.mark.parametrize(
    "name",
    [
        *(f"metadata/orientation {turn}.png" for turn in range(1, 9)),
        "kinds/progressive.jpg",
        "kinds/print.jpg",
        "kinds/photoshop print.jpg",
        "kinds/colour of 16 bit.png",
        "kinds/alpha.png",
        "kinds/print.tif",
        "kinds/plain.bmp",
        "kinds/lossless with alpha.webp",
        "metadata/text bomb.png",
        "metadata/profile bomb.png",
    ],
)
def test_however_it_was_stored_it_is_the_same_face(ingested: Ingested, name: str) -> None:
    wanted, found = crop_of(ingested, "faces/same pixels.png")[1], crop_of(ingested, name)[1]
    assert np.abs(wanted - found).mean() < 4


def test_neither_place_nor_camera_gets_into_a_crop(ingested: Ingested) -> None:
    data, _ = crop_of(ingested, "metadata/where it was.jpg")
    assert read_text(data) == {} and b"eXIf" not in data and b"camera" not in data


def test_the_same_bytes_are_one_face_and_two_sources(ingested: Ingested) -> None:
    rows = ingested.nights[0].rows
    one, other = rows["faces/same bytes.jpg"], rows["things/hard twin.jpg"]
    assert one["face_id"] == other["face_id"] and one["source_id"] != other["source_id"]
    assert rows["faces/same pixels.png"]["image_id"] != rows["faces/same pixels, other bytes.png"]["image_id"]
    nfc, nfd = [row for name, row in rows.items() if "joli" in name]
    assert nfc["uri"] != nfd["uri"] and nfc["consent"] == nfd["consent"]


# -- a folder that does not lie still


@dataclass(frozen=True)
class Raced:
    """Nights over the folder of the races: rows in force by name, and counts.

    In the first it moves, in the next two nothing does, then one file was only touched, and before the last
    a person mended what can be mended.
    """

    rows: list[dict[str, dict[str, Any]]]
    counts: list[dict[str, Any]]
    root: Path


@pytest.fixture(scope="module")
def raced(people: People, tmp_path_factory: pytest.TempPathFactory) -> Raced:
    """See `Raced`."""
    from flows.ingest import ingest
    from tasks.demo import install_models
    from tasks.ingest import ingest_shard
    from tasks.ingest_plan import plan_ingest
    from tasks.reports import counted
    from tasks.step import Job

    home = tmp_path_factory.mktemp("races")
    root, consent = home / "photos", home / "consent.csv"
    for race in RACES:
        at = root / race.name
        at.parent.mkdir(parents=True, exist_ok=True)
        if race.before is not None:
            race.before(at, people)
    consent.write_text("source,subject,attributes,expires,evidence\n*,someone,*,,form\n")
    store = open_store(str(home / "store"))
    job = install_models(Job(store=store.uri, dataset="races", parent="test"))
    with bound_by_permissions() as bound, pytest.MonkeyPatch.context() as patch:
        plan = plan_ingest(job, str(root), str(consent))
        for race in RACES:
            if race.between is not None:
                race.between(root / race.name, people)
        patch.setattr(sources, "_fill", reading_with(people, vars(sources)["_fill"]))
        for shard in plan.shards:
            ingest_shard(job, shard)
        if not bound:
            pytest.skip("this process may read everything, and cannot give that up")
        rows, counts = [rows_of(store, "races")], [counted(job, "sources", plan)]

        def night() -> None:
            counts.append(ingest("races", str(root), str(consent), store.uri))
            rows.append(rows_of(store, "races"))

        night()
        night()
        os.utime(root / "touched.jpg", ns=(1, 1))
        night()
        night()
        (root / "closed.jpg").chmod(0o644)
        (root / "nothing.jpg").write_bytes((root / "touched.jpg").read_bytes())
        night()
    return Raced(rows, counts, root)


@pytest.mark.parametrize("race", RACES, ids=[race.name.replace("/", " ") for race in RACES])
def test_what_moves_is_tried_again(raced: Raced, race: Race) -> None:
    def told(night: int) -> tuple[str, str]:
        row = raced.rows[night].get(race.name)
        return (row["status"], row["reason"]) if row else ("absent", "")

    assert told(0) == (race.status, race.reason)
    assert told(1) == told(2) == told(4) == (race.later, race.later_reason)


def test_a_verdict_is_about_the_bytes_that_were_read(raced: Raced) -> None:
    name = "in its size and time.bmp"
    assert raced.rows[0][name]["image_id"] == sha256_hex((raced.root / name).read_bytes())
    name = "replaced while read.jpg"
    now = sha256_hex((raced.root / name).read_bytes())
    assert raced.rows[0][name]["image_id"] != now == raced.rows[1][name]["image_id"]


def test_when_nothing_moves_nothing_new_is_kept_or_dropped(raced: Raced) -> None:
    still_failing = {"closed.jpg", "now dangling.jpg"}
    assert raced.counts[2]["new"] == len(still_failing)
    assert {**raced.counts[1], "new": 0} == {**raced.counts[2], "new": 0}
    # a file that was only touched is read once more, and then never again
    assert [counts["new"] - len(still_failing) for counts in raced.counts[3:5]] == [1, 0]
    assert raced.rows[3]["touched.jpg"]["image_id"] == raced.rows[2]["touched.jpg"]["image_id"]


def test_what_a_person_mended_is_no_failure_any_more(raced: Raced) -> None:
    before, after = raced.counts[4], raced.counts[5]
    for name in ("closed.jpg", "now dangling.jpg"):
        assert (raced.rows[4][name]["status"], raced.rows[5][name]["status"]) == ("failed", "kept")
    assert after["new"] == 3 and after["failed"] == before["failed"] - 2
    assert after["kept"] == before["kept"] + 3  # and what the link leads to


def test_every_night_adds_up(raced: Raced) -> None:
    for counts in raced.counts:
        assert counts["in"] == counts["kept"] + counts["dropped"] + counts["failed"]
