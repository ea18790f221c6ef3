"""Stories on a real Ray cluster of two nodes, with the store on a real S3 server; in the end a node dies."""

from __future__ import annotations

import random
import socket
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.testing.utilities import prefect_test_harness

from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.errors import ContractError, NotFoundError, SDFlowError, TransientError
from sdflow_core.records.leases import live
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.reconcile import reconcile
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table
from tests.ray_cluster import RayCluster, ray_cluster
from tests.s3_server import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def running(s3_server: S3Server) -> Iterator[RayCluster]:
    """The credentials of the object store are the nodes' own: no story hands them over."""
    with pytest.MonkeyPatch.context() as patch:
        # a token of its own, whatever lies in the home folder; Ray reads this when it is imported
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex * 2)
        with ray_cluster({**s3_server.environment(), "OMP_NUM_THREADS": "1"}) as cluster:
            yield cluster
            # before its head goes: a process that stays connected to a dead cluster is ended by Ray
            import ray

            ray.shutdown()


@pytest.fixture
def cluster(running: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    """Stories run there, two rows a shard, one GPU a shard."""
    monkeypatch.setenv("SDFLOW_RAY_ADDRESS", running.address)
    monkeypatch.setenv("SDFLOW_GPUS_PER_TASK", "1")
    monkeypatch.setenv("SDFLOW_SHARD_ROWS", "2")
    monkeypatch.setenv("SDFLOW_RUNNER", "ray")
    return running


@dataclass(frozen=True)
class People:
    """Pictures of people who do not exist, and a consent list for them."""

    photos: Path
    consent: Path


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    return sampled(tmp_path_factory.mktemp("people"), 6)


def sampled(root: Path, images: int) -> People:
    from tasks.demo import install_models, make_people
    from tasks.step import Job

    store = open_store(str(root / "store"))
    make_people(install_models(Job(store=store.uri, dataset="demo", parent="test")), images)
    made = People(root / "photos", root / "consent.csv")
    made.photos.mkdir()
    for key in store.list("demo/photos/"):
        (made.photos / key.rpartition("/")[2]).write_bytes(store.read(key))
    made.consent.write_bytes(store.read("demo/consent.csv"))
    return made


def new_store(where: str) -> Store:
    from tasks.demo import install_models
    from tasks.step import Job

    store = open_store(where)
    install_models(Job(store=store.uri, dataset="demo", parent="test"))
    return store


def run_stories(store: Store, people: People) -> Counter[str]:
    """Ingest, invert, label; gives the calls of the networks."""
    from flows.ingest import ingest
    from flows.invert import invert
    from flows.label import label
    from tasks.runtime import CALLS

    before = Counter(CALLS)
    ingest("demo", str(people.photos), str(people.consent), store.uri)
    invert("demo", store.uri)
    label("demo", store.uri)
    return CALLS - before


@pytest.fixture(scope="module")
def in_threads(
    people: People, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], Counter[str]]:
    """What the same stories give without a cluster and without S3: digests and calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDFLOW_SHARD_ROWS", "2")
        patch.setenv("SDFLOW_RUNNER", "threads")
        store = new_store(str(tmp_path_factory.mktemp("threads") / "store"))
        calls = run_stories(store, people)
    return canonical_digests(store, "demo"), calls


def shard_events(store: Store) -> list[dict[str, Any]]:
    """Events of all steps that ran on a node, in order of time."""
    found: list[dict[str, Any]] = []
    for event in Lineage(store).events():
        place = event["run"]["facets"]["sdflow"].get("place")
        if place is not None:
            found.append(
                {
                    "run": event["run"]["runId"],
                    "type": event["eventType"],
                    "time": event["eventTime"],
                    "job": event["job"]["name"],
                    "place": (place["node"], *place["gpus"]),
                }
            )
    return sorted(found, key=lambda event: event["time"])


def test_a_cluster_gives_what_threads_give_and_never_shares_a_gpu(
    cluster: RayCluster,
    people: People,
    in_threads: tuple[dict[str, str], Counter[str]],
    s3: S3Server,
    s3_prefix: str,
) -> None:
    store = new_store(f"s3://store/{s3_prefix}/store")
    calls = run_stories(store, people)
    digests, calls_in_threads = in_threads
    assert canonical_digests(store, "demo") == digests
    assert calls == calls_in_threads, "the calls made on nodes are counted by the story"

    spans: dict[str, dict[str, Any]] = defaultdict(dict)
    for event in shard_events(store):
        spans[event["run"]][event["type"]] = event
    assert len(spans) > 8
    by_gpu: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for span in spans.values():
        by_gpu[span["START"]["place"]].append((span["START"]["time"], span["COMPLETE"]["time"]))
    assert len(by_gpu) == 2, "both GPUs were used"
    for intervals in by_gpu.values():
        assert all(first[1] < second[0] for first, second in pairwise(sorted(intervals)))
    assert not live(store) and not list(store.list("open/")), "nothing was left open"


def test_a_shard_that_runs_twice_at_once_counts_once(
    cluster: RayCluster,
    people: People,
    in_threads: tuple[dict[str, str], Counter[str]],
    s3: S3Server,
    s3_prefix: str,
) -> None:
    """As when a node falls silent, its shards are begun again elsewhere, and it was alive all the time."""
    from flows.ingest import ingest
    from tasks.latents import invert_shard, plan_invert
    from tasks.step import each_shard
    from tasks.story import QUIET, story

    @flow(name="all twice", **QUIET)
    def all_twice() -> None:
        with story("all twice", "demo", store.uri) as job:
            plan = plan_invert(job)
            each_shard(invert_shard, job, [shard for shard in plan.shards for _ in range(2)])

    store = new_store(f"s3://store/{s3_prefix}/store")
    ingest("demo", str(people.photos), str(people.consent), store.uri)
    all_twice()
    begun = [event["job"] for event in shard_events(store) if event["type"] == "START"]
    assert begun.count("invert") == 6
    rows = Table(store, "demo", "latents").read()["row_key"].to_pylist()
    assert len(rows) == len(set(rows)) == 6
    assert canonical_digests(store, "demo")["latents"] == in_threads[0]["latents"]


def test_an_error_of_a_node_comes_back_as_itself_and_ends_the_story(
    cluster: RayCluster, people: People, s3: S3Server, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.ingest import ingest
    from flows.invert import invert

    store = new_store(f"s3://store/{s3_prefix}/store")
    ingest("demo", str(people.photos), str(people.consent), store.uri)
    weights = [key for key in store.list("models/") if key.endswith("/weights.bin")]
    assert weights  # read by the nodes alone: the plan looks at cards
    for key in weights:
        store.delete(key)
    monkeypatch.setenv("SDFLOW_RAY_TASKS", "1")
    with pytest.raises(NotFoundError) as caught:
        invert("demo", store.uri)
    assert "models/" in str(caught.value.where)
    types = [event["type"] for event in shard_events(store) if event["job"] == "invert"]
    assert types == ["START", "FAIL"], "no other shard was begun"
    assert not live(store) and not list(store.list("open/"))


def refused(store: Store) -> SDFlowError:
    """The error of a story; it must come before anything was written."""
    from flows.invert import invert

    before = sorted(store.list(""))
    with pytest.raises(SDFlowError) as caught:
        invert("demo", store.uri)
    assert sorted(store.list("")) == before
    return caught.value


def test_what_no_node_offers_is_refused_and_not_waited_for(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDFLOW_GPUS_PER_TASK", "2")
    error = refused(new_store(str(tmp_path / "store")))
    assert isinstance(error, ContractError)
    assert error.expected == "a node with 1 CPUs and 2 GPUs"
    assert error.found == "2 CPUs and 1 GPUs, 2 CPUs and 1 GPUs"
    assert "SDFLOW_GPUS_PER_TASK" in str(error.todo)


@pytest.mark.timeout(100)  # Ray alone tries for two minutes, and then ends the process
def test_a_cluster_that_is_not_there_is_an_error(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(str(tmp_path / "store"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("SDFLOW_RAY_ADDRESS", mute)
        error = refused(store)
        assert isinstance(error, TransientError) and error.where == mute
    monkeypatch.setenv("SDFLOW_RAY_ADDRESS", mute)
    error = refused(store)
    assert isinstance(error, TransientError) and "refused" in str(error.found)
    monkeypatch.setenv("SDFLOW_RAY_ADDRESS", "ray://127.0.0.1:10001")
    assert isinstance(refused(store), ContractError)
    monkeypatch.setenv("SDFLOW_RUNNER", "rai")
    error = refused(store)
    assert isinstance(error, ContractError) and error.found == "rai"


class Killer:
    """Kills a node as soon as a shard has begun on it; it is given time to get into the middle of it."""

    def __init__(self, cluster: RayCluster, store: Store, host: str, seconds: float) -> None:
        self.cluster, self.store, self.host, self.seconds = cluster, store, host, seconds
        self.node = _node_id(host)
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self._thread.join(60)

    def _kill(self) -> None:
        while not self.done.wait(0.05):
            if any(event["place"][0] == self.node for event in shard_events(self.store)):
                time.sleep(self.seconds)
                self.cluster.kill_node(self.host)
                return


def _node_id(host: str) -> str:
    from tasks.cluster import slots

    slots()
    import ray

    return next(node["NodeID"][:12] for node in ray.nodes() if node["Alive"] and node["NodeName"] == host)


def aborted(store: Store) -> list[str]:
    """Jobs of the runs that ended without a word, told so now."""
    assert not live(store)
    return [orphan.job for orphan in reconcile(store)]


def test_a_node_dies_and_the_story_ends(
    cluster: RayCluster,
    people: People,
    in_threads: tuple[dict[str, str], Counter[str]],
    s3: S3Server,
    s3_prefix: str,
) -> None:
    store = new_store(f"s3://store/{s3_prefix}/store")
    with Killer(cluster, store, cluster.nodes[-1], 0.2) as killer:
        run_stories(store, people)
    assert killer.host not in cluster.nodes, "the node was killed"
    assert canonical_digests(store, "demo") == in_threads[0]
    for table in ("sources", "faces", "latents", "labels"):
        rows = Table(store, "demo", table).read()["row_key"].to_pylist()
        assert len(rows) == len(set(rows))
    events = shard_events(store)
    begun = {event["run"] for event in events if event["type"] == "START"}
    ended = {event["run"] for event in events if event["type"] != "START"}
    assert begun - ended, "a shard was under way on it"
    assert aborted(store) == ["ingest"] * len(begun - ended)
    assert not list(store.list("open/"))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
def test_nodes_die_again_and_again(
    seed: int, cluster: RayCluster, tmp_path: Path, s3: S3Server, s3_prefix: str
) -> None:
    from flows.ingest import ingest
    from flows.invert import invert
    from flows.label import label

    chance = random.Random(seed)
    many = sampled(tmp_path, 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDFLOW_RUNNER", "threads")
        expected = new_store(str(tmp_path / "expected"))
        run_stories(expected, many)
    store = new_store(f"s3://store/{s3_prefix}/store")
    for story in (
        lambda: ingest("demo", str(many.photos), str(many.consent), store.uri),
        lambda: invert("demo", store.uri),
        lambda: label("demo", store.uri),
    ):
        while len(cluster.nodes) < 2:
            cluster.start_node()
        with Killer(cluster, store, cluster.nodes[-1], chance.uniform(0, 3)):
            story()
    assert canonical_digests(store, "demo") == canonical_digests(expected, "demo")
    aborted(store)
    assert not list(store.list("open/"))
