"""Runs that ended without a word: each gets the ABORT that it could not write itself.

A run makes a marker, `open/<run>.json`, before its START and removes it after its last event, so that only
what may have been interrupted has to be looked at, however long the lineage is. A marker names the root run,
whose lease says whether anybody still works on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

from .errors import ContractError, NotFoundError
from .keys import canonical_json
from .leases import lease_of
from .lineage import Lineage
from .objects import Store

__all__ = ["Marker", "Orphan", "close_run", "marker_of", "open_run", "reconcile"]

_FOLDER = "open/"
_ENDS = ("COMPLETE", "FAIL", "ABORT")


@dataclass(frozen=True)
class Marker:
    """A run that has begun, and of which no end is known.

    Attributes:
        run: Its id.
        job: Name of the story or step.
        dataset: It works on.
        parent: The run that started it; empty at the top.
        root: The run whose lease says whether it is alive.
    """

    run: str
    job: str
    dataset: str
    parent: str
    root: str


@dataclass(frozen=True)
class Orphan:
    """A run that was found interrupted, and got its ABORT by this call.

    Attributes:
        run: Its id.
        job: Name of the story or step.
        dataset: It works on.
        parent: The run that started it; empty at the top.
        root: The outermost story.
        started: ISO time of its START.
        reason: Why it counts as interrupted, in words.
    """

    run: str
    job: str
    dataset: str
    parent: str
    root: str
    started: str
    reason: str


def open_run(store: Store, run: str, *, job: str, dataset: str, parent: str, root: str) -> None:
    """Says that a run begins; before its START.

    Raises:
        ContractError: The run id is no part of a key, or the store cannot be written.
    """
    marker = Marker(run, job, dataset, parent, root)
    store.create(_key(run), canonical_json(asdict(marker)))


def close_run(store: Store, run: str) -> None:
    """Says that a run has written its last event."""
    store.delete(_key(run))


def marker_of(store: Store, run: str) -> Marker | None:
    """The marker of a run; None when it has ended, or is not known."""
    try:
        return Marker(**cast("dict[str, Any]", json.loads(store.read(_key(run)))))
    except (NotFoundError, ValueError, TypeError):
        return None


def reconcile(store: Store) -> list[Orphan]:
    """Writes an ABORT for every run that began, did not end, and whose root run is no longer alive.

    Each run gets one, also when several processes do this at once; only the one that wrote it returns it.

    Args:
        store: The store.

    Returns:
        The runs that were found interrupted, sorted by id.

    Raises:
        ContractError: The store cannot be written.
    """
    found = (_settle(store, marker) for marker in _markers(store))
    return sorted((orphan for orphan in found if orphan is not None), key=lambda orphan: orphan.run)


def _markers(store: Store) -> Iterator[Marker]:
    for key in store.list(_FOLDER):
        run = key.removeprefix(_FOLDER).removesuffix(".json")
        marker = marker_of(store, run)
        if marker is not None:
            yield marker
        elif store.exists(key):
            # A machine that lost power left a broken one: what it said is not needed to know the run.
            yield Marker(run, "", "", "", run)


def _settle(store: Store, marker: Marker) -> Orphan | None:
    # In this order: a run that ends in good order writes its end before it gives its lease up.
    held = lease_of(store, marker.root)
    reason = held.dead() if held is not None else "nobody holds a lease for it"
    if not reason:
        return None
    lineage = Lineage(store)
    events = list(lineage.events(marker.run))
    starts = [event for event in events if event["eventType"] == "START"]
    written = False
    orphan = None
    if starts and not any(event["eventType"] in _ENDS for event in events):
        start = starts[0]
        job = marker.job or str(start["job"]["name"])
        told = f"interrupted: {reason}"
        orphan = Orphan(
            marker.run, job, marker.dataset, marker.parent, marker.root, str(start["eventTime"]), told
        )
        written = lineage.abort_once(marker.run, told)
    close_run(store, marker.run)
    return orphan if written else None


def _key(run: str) -> str:
    if not run or "/" in run or run in (".", ".."):
        raise ContractError("a run id must be one part of a key", found=repr(run))
    return f"{_FOLDER}{run}.json"
