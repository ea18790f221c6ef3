"""What still needs a person: edit runs with undecided edits, and with approved edits that never left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from .ahead import ahead
from .config import Config
from .decisions import Decision, EditRun, decisions_of, edit_runs
from .releases import releases, withheld_by_consent
from .store import Store
from .tables import Table

__all__ = ["WaitingRun", "time_of", "waiting_runs"]


class WaitingRun(Config):
    """An edit run that is not finished with.

    Attributes:
        edit_run: Its id.
        dataset: Whose images.
        time: When it was planned (ISO 8601, UTC).
        undecided: Edits that wait and that nobody decided about, in this run or another. Those that no
            consent lets leave any more are not counted, here and below.
        unpublished: Edits that this run's decisions approve and that no release holds.
        missing: Announced edits that were never rendered; while there are any, nothing can be decided.
    """

    edit_run: str
    dataset: str
    time: str
    undecided: int
    unpublished: int
    missing: int

    def days(self, now: datetime) -> float:
        """Age in days."""
        return (now - datetime.fromisoformat(self.time)).total_seconds() / 86400


def time_of(store: Store, run: EditRun) -> str:
    """When an edit run was planned; runs of earlier versions do not say so, their file's time does."""
    said = run.document.get("time")
    if isinstance(said, str):
        return said
    changed = store.stat(f"private/edit_runs/{run.edit_run}.json").mtime_ns or 0
    return datetime.fromtimestamp(changed / 1e9, UTC).isoformat(timespec="seconds")


def waiting_runs(store: Store, datasets: Sequence[str]) -> list[WaitingRun]:
    """Edit runs of these datasets that need a person, oldest first.

    Tables and journals are read once, however many runs there are.

    Raises:
        CorruptError: A record that is needed cannot be read.
    """
    runs = [run for run in edit_runs(store) if run.dataset in datasets]
    latest = ahead(store, lambda run: decisions_of(store, run.edit_run), runs)
    said = {run.edit_run: of for run, of in zip(runs, latest, strict=True)}
    decided = {edit_id for of in said.values() for edit_id in of}
    left = {output.edit_id for release in releases(store) for output in release.outputs}
    found: list[WaitingRun] = []
    for dataset in sorted({run.dataset for run in runs}):
        status = _status(store, dataset)
        # nobody need look at what may not leave whatever is decided
        barred = withheld_by_consent(store, dataset)
        for run in (run for run in runs if run.dataset == dataset):
            waiting = [key for key in run.edit_ids if status.get(key) == "waiting" and key not in barred]
            one = WaitingRun(
                edit_run=run.edit_run,
                dataset=dataset,
                time=time_of(store, run),
                undecided=sum(key not in decided for key in waiting),
                unpublished=sum(
                    _approved(said[run.edit_run].get(key)) and key not in left for key in waiting
                ),
                missing=sum(key not in status for key in run.edit_ids),
            )
            if one.undecided or one.unpublished or one.missing:
                found.append(one)
    return sorted(found, key=lambda one: (one.time, one.edit_run))


def _status(store: Store, dataset: str) -> dict[str, str]:
    rows = Table(store, dataset, "edits").read(columns=["row_key", "status"])
    keys = cast("list[str]", rows.column("row_key").to_pylist())
    return dict(zip(keys, cast("list[str]", rows.column("status").to_pylist()), strict=True))


def _approved(said: Decision | None) -> bool:
    return said is not None and said.approved
