"""The formula: a workload and rates -> seconds, requests, bytes of every story. Nothing is run.

It follows the pipeline: planning is one task and one core, shard tasks run side by side, every commit counts
and hashes what its table holds, contact sheets and releases are one task again. What it cannot know, such as
how far apart slow and quick shards lie, the simulation shows.
"""

from __future__ import annotations

import math
from collections import Counter

from sdflow_core.capacity.prices import Limits
from sdflow_core.capacity.rates import Rates
from sdflow_core.capacity.story import Amounts, Story, StoryPlan, less, more
from sdflow_core.capacity.workload import Work, Workload

__all__ = ["FIRST", "STORIES", "stories", "works"]

FIRST = ("ingest", "invert", "label", "edit", "publish")  # from pictures to a release
STORIES = (*FIRST, "nothing_new", "one_percent", "refresh")
_SHARD_STORIES = ("ingest", "invert", "label", "edit")
_READS = ("GET", "HEAD", "LIST")


def works(load: Workload, rates: Rates) -> dict[str, Work]:
    """The shard tasks of a first load, by story, with its planning and what comes after them."""
    return {name: _first(Story(load, rates), name)[0] for name in _SHARD_STORIES}


def stories(load: Workload, rates: Rates, limits: Limits) -> dict[str, StoryPlan]:
    """Every story: those of a first load, then a night of nothing new, one of 1 %, and a refresh.

    Raises:
        ContractError: The device is not known.
    """
    found: dict[str, StoryPlan] = {}
    for name in _SHARD_STORIES:
        story, rows = Story(load, rates), _rows(load, name)
        work, requests = _first(story, name)
        device = rows * story.device_second(f"{name}.device") if name != "ingest" else 0.0
        found[name] = story.made(name, rows, [work], requests, device, limits, story.stored(name, rows))
    found["publish"] = _publish(Story(load, rates), limits)
    found["nothing_new"] = _night(Story(load, rates), 0, limits)
    found["one_percent"] = _night(Story(load, rates), math.ceil(load.images / 100), limits)
    found["refresh"] = _refresh(Story(load, rates), limits)
    return found


def _rows(load: Workload, story: str) -> int:
    return load.images * (load.edits if story in ("edit", "publish") else 1)


def _held_shards(story: Story, name: str) -> int:
    """Shards of all tables that lie there when a story of a first load begins; after it, for all others."""
    shards, edits = story.shards(story.load.images), story.shards(_rows(story.load, "edit"))
    before = {"ingest": 0, "invert": 2, "label": 3, "edit": 4}
    return before[name] * shards if name in before else 4 * shards + edits


def _opening(story: Story, opened: Amounts) -> float:
    """Seconds in which a planning step reads, one request after another, what the store knows already."""
    trip, megabyte = story.second("s3.request"), story.second("s3.megabyte")
    return sum(opened.get(method, 0.0) for method in _READS) * trip + opened.get("DOWN", 0.0) / 1e6 * megabyte


def _first(story: Story, name: str) -> tuple[Work, Amounts]:
    """One story of a first load: its work, and everything it asks of the store."""
    rows, held = _rows(story.load, name), _held_shards(story, name)
    opened = less(story.requests(name, 0, 0, held), story.requests(name, 0, 0, 0, part=True))
    before = story.second("story.start") + rows * story.second(f"plan.{name}") + _opening(story, opened)
    if name == "ingest":
        before += rows * story.serial_requests("ingest") * story.second("s3.request")
    after = _sheets(story, rows) if name == "edit" else 0.0
    work = story.work(name, rows).model_copy(update={"before_seconds": before, "after_seconds": after})
    return work, story.requests(name, work.shards, rows, held)


def _sheets(story: Story, rows: int) -> float:
    """Contact sheets: one task reads three pictures an edit and draws them."""
    reads = story.serial_requests("edit") * story.second("s3.request")
    return rows * (story.second("sheet.host") + reads)


def _publish(story: Story, limits: Limits) -> StoryPlan:
    """Decisions and the release of all edits, each picture after the other."""
    rows, held = _rows(story.load, "publish"), _held_shards(story, "publish")
    requests = story.requests("publish", 0, rows, held)
    seconds = story.second("story.start") + rows * story.second("publish.host") + _opening(story, requests)
    seconds += requests.get("PUT", 0.0) * story.second("s3.request")
    decided = story.requests("decide", 0, rows, held)
    requests = more(requests, decided)
    seconds += rows * story.second("decide.host") + _opening(story, decided)
    work = Work(shards=0, shard_seconds=0, before_seconds=seconds)
    return story.made("publish", rows, [work], requests, 0.0, limits, story.stored("publish", rows))


def _night(story: Story, new: int, limits: Limits) -> StoryPlan:
    """A night over a whole dataset of which `new` pictures are new."""
    load, held = story.load, _held_shards(story, "night")
    listed = load.images + new
    requests = story.requests("night", 0, listed, held)
    seconds = (
        story.second("story.start")
        + _opening(story, requests)
        + requests.get("PUT", 0.0) * story.second("s3.request")
    )
    for name in _SHARD_STORIES:
        rows = listed * (load.edits if name == "edit" else 1)
        seconds += rows * story.second(f"plan.{name}")
    parts = [Work(shards=0, shard_seconds=0, before_seconds=seconds)]
    device, stored, objects = 0.0, Counter[str](), 0
    for name in _SHARD_STORIES if new else ():
        rows = new * (load.edits if name == "edit" else 1)
        held_rows = load.images * (load.edits if name == "edit" else 1)
        part = story.work(name, rows, held_rows)
        parts.append(
            part.model_copy(update={"after_seconds": _sheets(story, rows) if name == "edit" else 0.0})
        )
        requests = more(requests, story.requests(name, part.shards, rows, held, part=True))
        device += rows * story.device_second(f"{name}.device") if name != "ingest" else 0.0
        sizes, count = story.stored(name, rows)
        stored.update(sizes)
        objects += count
    name = "one_percent" if new else "nothing_new"
    return story.made(name, listed, parts, requests, device, limits, (dict(stored), objects))


def _refresh(story: Story, limits: Limits) -> StoryPlan:
    """Another encoder and labeller over everything, and an editor trained for them; the old rows stay."""
    load, held = story.load, _held_shards(story, "refresh")
    parts = [Work(shards=0, shard_seconds=0, before_seconds=story.device_second("train.device"))]
    requests, stored, objects = more(), Counter[str](), 0
    device = story.device_second("train.device")
    for name in ("invert", "label"):
        rows = load.images
        opened = story.requests(name, 0, 0, held)
        before = story.second("story.start") + rows * story.second(f"plan.{name}") + _opening(story, opened)
        work = story.work(name, rows).model_copy(update={"before_seconds": before})
        parts.append(work)
        requests = more(requests, story.requests(name, work.shards, rows, held))
        device += rows * story.device_second(f"{name}.device")
        sizes, count = story.stored(name, rows)
        stored.update(sizes)
        objects += count
    story.used["refresh as invert, label and train"] = "extrapolated"
    return story.made("refresh", load.images, parts, requests, device, limits, (dict(stored), objects))
