"""Whole nights on S3, killed, disturbed, out of room or without their server: the same records every time."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from sdflow_core.records.store import open_store
from sdflow_core.records.verification import verify_store
from tests.crashes import DATASET, Scene, away, disturb_night, kill_nights, make_scene, restart_server
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.nights import kill_once, start_night, whole
from tests.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(900)]
WELL = {"identical": True, "rows_lost_or_doubled": 0, "orphans_after_gc": 0}


def made(server: S3Server, factory: pytest.TempPathFactory, rows: int, shard_rows: int) -> Iterator[Scene]:
    from cli.server import prefect_server

    work, before = factory.mktemp("crash"), dict(os.environ)
    os.environ.update(server.environment())
    try:
        with prefect_server(str(work / "home")):
            yield make_scene(server, work, f"crash-{uuid.uuid4().hex[:12]}", rows, shard_rows)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def small(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The smallest night with two shards of everything."""
    yield from made(s3_server, tmp_path_factory, 4, 2)


@pytest.fixture(scope="module")
def large(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A night of three shards."""
    yield from made(s3_server, tmp_path_factory, 12, 4)


def well(end: dict[str, Any]) -> bool:
    """Whether nothing is lost, doubled or changed, nor left over once `gc` has run."""
    return {name: end[name] for name in WELL} == WELL


def refused(scene: Scene, store: str, proxy: FaultProxy) -> str:
    """The message of a night that finds no room; what it leaves behind is whole."""
    process = start_night(store, scene.policy, scene.shard_rows, proxy.environment())
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2, out + err
    assert "Traceback" not in out + err
    [line] = err.strip().splitlines()
    verify_store(open_store(store))
    assert whole(store, DATASET)[1] == 0, "what is committed is there, and nothing else counts"
    error = json.loads(out.strip().splitlines()[-1])["error"]
    assert line.endswith(error["message"])
    return str(error["message"])


def test_killed_out_of_room_disturbed_without_a_server_and_the_same(small: Scene) -> None:
    store = small.fresh("story")
    kills = [kill_once(store, small.policy, small.shard_rows, small.seconds * at) for at in (0.35, 0.7)]
    assert kills[0]
    with fault_proxy(small.server, seed=1, delay_seconds=(0.05, 0.5)) as proxy:
        proxy.enabled = False
        proxy.refuse_writes("QuotaExceeded", after=40)
        said = refused(small, store, proxy)
        assert "QuotaExceeded" in said or "quota" in said, said
        proxy.refuse_writes("")
        proxy.enabled = True
        proxy.fail("PUT", "/journal/", nth=1, kind="lost")
        process = start_night(store, small.policy, small.shard_rows, proxy.environment())
        away(small, store, process, 0.3, 2)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err
        assert proxy.struck > 5
    assert well(small.end(store))


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_share_of_all_requests_is_struck(large: Scene, seed: int) -> None:
    end = disturb_night(large, seed)
    assert well(end) and end["struck"] > 20, end


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_kills(large: Scene) -> None:
    ends = kill_nights(large, 20)
    assert sum(end["kills"] for end in ends) == 20
    assert all(well(end) for end in ends), ends


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_server_is_killed_and_comes_back(large: Scene, seed: int) -> None:
    end = restart_server(large, seed)
    assert well(end), end
    assert not end["said"] or "unexpected error" not in end["said"], end


@pytest.mark.long
@pytest.mark.parametrize("code", ["QuotaExceeded", "InsufficientStorage"])
@pytest.mark.parametrize("after", [0, 30, 90])
def test_no_room_and_then_room_again(large: Scene, code: str, after: int) -> None:
    store = large.fresh(f"room-{code.lower()}-{after}")
    with fault_proxy(large.server, share=0) as proxy:
        proxy.refuse_writes(code, after=after)
        said = refused(large, store, proxy)
        assert "unexpected error" not in said and "What to do" in said, said
    large.night(store)
    assert well(large.end(store))
