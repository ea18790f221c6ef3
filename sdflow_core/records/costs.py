"""What steps took so far: seconds a row, from the lineage of the runs that made the rows."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from .ahead import ahead
from .journal import Journal
from .lineage import Lineage
from .store import Store

__all__ = ["TABLE_OF", "seconds_a_row"]

TABLE_OF = {
    "ingest": "sources",
    "invert": "latents",
    "label": "labels",
    "train": "editors",
    "edit": "edits",
}
_MEASURED_RUNS = 5


def seconds_a_row(store: Store, dataset: str) -> dict[str, float]:
    """Step -> seconds a row, of the latest runs in this dataset that lineage has seen begin and end.

    For train it is the seconds of a whole training. Steps that were not measured are absent.
    """
    runs: dict[str, Counter[str]] = {name: Counter() for name in TABLE_OF}
    step_of = {table: name for name, table in TABLE_OF.items()}
    for entry in reversed(list(Journal(store, f"private/datasets/{dataset}/journal").entries())):
        name = step_of.get(str(entry.payload.get("table"))) if entry.kind == "rows" else None
        if name and entry.run and (entry.run in runs[name] or len(runs[name]) < _MEASURED_RUNS):
            runs[name][entry.run] += int(entry.payload["rows"])
    found: dict[str, float] = {}
    for name, rows in runs.items():
        taken = dict(zip(rows, ahead(store, lambda run: _seconds(store, run), rows), strict=True))
        measured = {run: seconds for run, seconds in taken.items() if seconds is not None}
        if measured:
            found[name] = sum(measured.values()) / sum(rows[run] for run in measured)
    return found


def _seconds(store: Store, run: str) -> float | None:
    times = {event["eventType"]: event["eventTime"] for event in Lineage(store).events(run)}
    if "START" not in times or "COMPLETE" not in times:
        return None
    taken = datetime.fromisoformat(times["COMPLETE"]) - datetime.fromisoformat(times["START"])
    return taken.total_seconds()
