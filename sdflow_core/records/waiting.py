"""What still needs a person: edit runs with undecided edits, and with approved edits that never left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import cast

import pyarrow as pa

from .ahead import ahead
from .announced import announced_runs, announced_time
from .config import Config
from .decisions import Decision, decisions_of
from .releases import releases
from .store import Store
from .tables import Table
from .withholding import Consents

__all__ = ["WaitingRun", "waiting_runs"]


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


def waiting_runs(store: Store, datasets: Sequence[str]) -> list[WaitingRun]:
    """Edit runs of these datasets that need a person, oldest first.

    Tables and journals are read once, however many runs there are.

    Raises:
        CorruptError: A record that is needed cannot be read.
    """
    runs = [run for run in announced_runs(store) if run.document["dataset"] in datasets]
    latest = ahead(store, lambda run: decisions_of(store, run.edit_run), runs)
    said = {run.edit_run: of for run, of in zip(runs, latest, strict=True)}
    decided = {edit_id for of in said.values() for edit_id in of}
    left = {output.edit_id for release in releases(store) for output in release.outputs}
    found: list[WaitingRun] = []
    for dataset in sorted({str(run.document["dataset"]) for run in runs}):
        table = Table(store, dataset, "edits")
        consents = Consents(store, dataset)
        for run in (run for run in runs if run.document["dataset"] == dataset):
            rows = table.read(columns=["row_key", "status", "source_id", "request"], row_keys=run.keys)
            # nobody need look at what may not leave whatever is decided
            waiting = consents.let_leave(_waiting(rows))
            one = WaitingRun(
                edit_run=run.edit_run,
                dataset=dataset,
                time=announced_time(store, run),
                undecided=sum(key not in decided for key in waiting),
                unpublished=sum(
                    _approved(said[run.edit_run].get(key)) and key not in left for key in waiting
                ),
                missing=len(run.keys) - rows.num_rows,
            )
            if one.undecided or one.unpublished or one.missing:
                found.append(one)
    return sorted(found, key=lambda one: (one.time, one.edit_run))


def _waiting(rows: pa.Table) -> pa.Table:
    status = cast("list[str]", rows.column("status").to_pylist())
    return rows.take(pa.array([at for at, said in enumerate(status) if said == "waiting"], pa.int64()))


def _approved(said: Decision | None) -> bool:
    return said is not None and said.approved
