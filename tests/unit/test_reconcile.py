"""Reconcile: what was killed gets its ABORT, once; what lives or ended is left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sdflow_core.records.leases import lease
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.reconcile import Marker, close_run, marker_of, open_run, reconcile
from sdflow_core.records.store import Store, open_store

ROOT = Path(__file__).resolve().parents[2]
# A story with two steps, of which one has ended, killed in the other.
STORY = """
import sys, time
from tasks.step import step
from tasks.story import story

@step("good")
def good(run):
    return 1

@step("long")
def long(run):
    print(run.job.parent, run.run, flush=True)
    time.sleep(600)

with story("nightly", "people", sys.argv[1], bundle=False) as outer:
    with story("edit", "people", sys.argv[1], outer.parent, bundle=False) as job:
        good.fn(job)
        long.fn(job)
"""


def begin(store: Store, run: str, *events: Any, root: str = "story") -> None:
    open_run(store, run, job=f"job of {run}", dataset="d", parent="story", root=root)
    for event in events:
        Lineage(store).emit(
            event, run=run, job=f"job of {run}", parent="story", inputs=[], outputs=[], recipe="r",
            bundle=None, config=None,
        )  # fmt: skip


def types(store: Store, run: str) -> list[str]:
    return [event["eventType"] for event in Lineage(store).events(run)]


def test_an_interrupted_run_gets_its_abort(store: Store) -> None:
    begin(store, "one", "START")
    (orphan,) = reconcile(store)
    assert (orphan.run, orphan.job, orphan.dataset, orphan.root) == ("one", "job of one", "d", "story")
    assert "nobody holds a lease" in orphan.reason
    start, abort = Lineage(store).events("one")
    assert (start["eventType"], abort["eventType"]) == ("START", "ABORT")
    assert abort["run"]["facets"]["errorMessage"]["message"] == orphan.reason
    assert abort["run"]["facets"]["parent"] == start["run"]["facets"]["parent"]
    assert abort["eventTime"] > start["eventTime"] == orphan.started
    assert reconcile(store) == [] and list(store.list("open/")) == []


@pytest.mark.parametrize("end", ["COMPLETE", "FAIL", "ABORT"])
def test_what_ended_is_only_tidied(store: Store, end: str) -> None:
    begin(store, "one", "START", "REUSED", end)
    assert reconcile(store) == []
    assert types(store, "one") == ["START", "REUSED", end]
    assert list(store.list("open/")) == []


def test_what_never_began_is_only_tidied(store: Store) -> None:
    begin(store, "one")
    assert reconcile(store) == []
    assert types(store, "one") == [] and list(store.list("open/")) == []


def test_what_lives_is_left_alone(store: Store) -> None:
    begin(store, "one", "START")
    with lease(store, "story"):
        assert reconcile(store) == []
        assert types(store, "one") == ["START"]
    assert [orphan.run for orphan in reconcile(store)] == ["one"]


def test_a_broken_marker_still_names_its_run(store: Store) -> None:
    begin(store, "one", "START")
    store.put("open/one.json", b"")
    (orphan,) = reconcile(store)
    assert (orphan.run, orphan.job) == ("one", "job of one")


def test_a_run_that_lived_after_all_has_the_last_word(store: Store) -> None:
    begin(store, "one", "START")
    reconcile(store)
    Lineage(store).emit(
        "COMPLETE", run="one", job="j", parent=None, inputs=[], outputs=[], recipe=None, bundle=None,
        config=None,
    )  # fmt: skip
    assert types(store, "one") == ["START", "ABORT", "COMPLETE"]


def _reconcile(uri: str, gate: Any, found: Any) -> None:
    store = open_store(uri)
    gate.wait(60)
    found.put([orphan.run for orphan in reconcile(store)])


@pytest.mark.slow
def test_many_at_once_write_one_abort_each(store: Store) -> None:
    runs = [f"run-{number:02d}" for number in range(30)]
    for run in runs:
        begin(store, run, "START")
    context = multiprocessing.get_context("spawn")
    gate, found = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_reconcile, args=(store.uri, gate, found)) for _ in range(4)]
    for process in processes:
        process.start()
    said = [found.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert Counter(run for part in said for run in part) == Counter(runs)
    assert all(types(store, run) == ["START", "ABORT"] for run in runs)


@pytest.mark.slow
def test_a_killed_story_is_found_with_its_steps(store: Store) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STORY, store.uri], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    story, step = process.stdout.readline().split()
    marker = marker_of(store, step)
    assert marker is not None
    outer = marker.root
    assert marker == Marker(step, "long", "people", story, outer)
    assert marker_of(store, story) == Marker(story, "edit", "people", outer, outer)
    assert marker_of(store, outer) == Marker(outer, "nightly", "people", "", outer)
    assert list(store.list("leases/")) == [f"leases/{outer}.json"], "one lease, of the outermost story"
    assert reconcile(store) == []
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    found = reconcile(store)
    assert {orphan.run: orphan.job for orphan in found} == {step: "long", story: "edit", outer: "nightly"}
    assert all(f"process {process.pid} is gone" in orphan.reason for orphan in found)
    assert reconcile(store) == []
    ends = Counter(event["eventType"] for event in Lineage(store).events())
    assert ends == {"START": 4, "COMPLETE": 1, "ABORT": 3}


def test_closing_twice_is_closing_once(store: Store) -> None:
    begin(store, "one")
    close_run(store, "one")
    close_run(store, "one")
    assert marker_of(store, "one") is None


def test_stories_and_steps_leave_no_marker(store: Store) -> None:
    from tasks.step import step
    from tasks.story import story

    @step("good")
    def good(run: Any) -> int:
        assert marker_of(run.store, run.run) is not None
        return 1

    @step("bad")
    def bad(run: Any) -> int:
        raise ZeroDivisionError

    with story("one", "d", store.uri, bundle=False) as job:
        good.fn(job)
        with pytest.raises(ZeroDivisionError):
            bad.fn(job)
        assert len(list(store.list("open/"))) == 1
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), story("two", "d", store.uri, bundle=False):
            raise error
    # A story under a parent that nobody knows, or that is dead, holds a lease of its own.
    with story("three", "d", store.uri, "f" * 32, bundle=False) as job:
        assert job.root == job.parent
        assert list(store.list("leases/")) == [f"leases/{job.parent}.json"]
    assert list(store.list("open/")) == [] == list(store.list("leases/"))
    assert reconcile(store) == []
