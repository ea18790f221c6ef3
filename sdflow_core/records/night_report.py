"""What a night did, as values: counted per dataset, summed, and turned into what to do next.

Holds no name of a file or a person, and no picture; the page that shows it is made in `night_page`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from .config import Config
from .drift import Drift
from .waiting import WaitingRun

__all__ = ["REPORTS", "ClosedRun", "DatasetNight", "Edits", "NightReport", "Sources", "Todo", "next_steps"]

REPORTS = "private/reports/nightly"  # private: the page shows faces
STORIES = ("ingest", "invert", "label", "edit")


class Sources(Config):
    """Sources of a dataset after the night; `tried` of them were read tonight.

    `total` = kept + dropped + failed; the JSON twin calls it `in`.
    """

    total: int
    kept: int
    dropped: int
    failed: int
    tried: int
    reasons: dict[str, int]


class Edits(Config):
    """Edits of tonight (`new` = rendered + refused by consent), and how many exist in all."""

    wanted: int
    new: int
    rendered: int
    waiting: int
    gated: int
    refused_by_consent: int
    reasons: dict[str, int]


class DatasetNight(Config):
    """One dataset's part.

    Attributes:
        dataset: Its name.
        state: `done`, `broken` (it stopped in story `stopped_in`) or `off`.
        bundle: Digest of the models that it worked with.
        stopped_in: Name of the story.
        error: Kind of the error and what went wrong; no address, no file.
        todo: What the error asks for.
        sources: None when it broke before.
        new_latents: Faces encoded tonight.
        new_labels: Faces scored tonight.
        edits: None when it broke before.
        edit_runs: Runs that were finished tonight and can be looked at.
        drift: One attribute each, all labels of the dataset.
        drift_new: The same for tonight's labels alone.
        model_calls: Calls by network.
        seconds: By story.
    """

    dataset: str
    state: Literal["done", "broken", "off"]
    bundle: str = ""
    stopped_in: str = ""
    error: str = ""
    todo: str = ""
    sources: Sources | None = None
    new_latents: int = 0
    new_labels: int = 0
    edits: Edits | None = None
    edit_runs: tuple[str, ...] = ()
    drift: tuple[Drift, ...] = ()
    drift_new: tuple[Drift, ...] = ()
    model_calls: dict[str, int] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def calls(self) -> int:
        """Model calls in all."""
        return sum(self.model_calls.values())


class ClosedRun(Config):
    """A run that had died without a word and was closed by this night."""

    run: str
    job: str = ""
    dataset: str = ""


class Todo(Config):
    """One thing for a person: why, and the command where there is one."""

    text: str
    command: str = ""


class NightReport(Config):
    """The whole night.

    Attributes:
        run: Its id in lineage.
        time: When it ended (ISO 8601, UTC).
        bundle: Digest of the models that were pinned at its start.
        bundle_now: Digest in force at its end.
        policy: Digest of the policy.
        remind_after_days: Of the policy.
        datasets: In the policy's order.
        orphans: Runs that an earlier death had left open and that are closed now.
        waiting: Edit runs that need a person.
        due: Datasets for which promoted models wait until a refresh has brought them there.
        problems: Whatever could not be looked at, in words.
        seconds: Of the night, before its report.
    """

    run: str
    time: str
    bundle: str
    bundle_now: str
    policy: str
    remind_after_days: float
    datasets: tuple[DatasetNight, ...]
    orphans: tuple[ClosedRun, ...] = ()
    waiting: tuple[WaitingRun, ...] = ()
    due: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def broken(self) -> tuple[DatasetNight, ...]:
        """Datasets that did not get through."""
        return tuple(part for part in self.datasets if part.state == "broken")

    @property
    def key(self) -> str:
        """Folder of the report in the store."""
        return f"{REPORTS}/{self.time[:10]}-{self.run[:8]}"

    def overdue(self) -> tuple[WaitingRun, ...]:
        """Runs with edits that wait for a decision longer than the policy likes."""
        now = datetime.fromisoformat(self.time)
        return tuple(w for w in self.waiting if w.undecided and w.days(now) >= self.remind_after_days)

    def totals(self) -> dict[str, int]:
        """Sums over all datasets."""
        sources = [part.sources for part in self.datasets if part.sources]
        edits = [part.edits for part in self.datasets if part.edits]
        return {
            "in": sum(s.total for s in sources),
            "kept": sum(s.kept for s in sources),
            "dropped": sum(s.dropped for s in sources),
            "failed": sum(s.failed for s in sources),
            "new": sum(s.tried for s in sources),
            "edited": sum(e.rendered for e in edits),
            "gated": sum(e.gated for e in edits),
            "waiting": sum(e.waiting for e in edits),
            "refused_by_consent": sum(e.refused_by_consent for e in edits),
            "undecided": sum(w.undecided for w in self.waiting),
            "unpublished": sum(w.unpublished for w in self.waiting),
            "model_calls": sum(part.calls for part in self.datasets),
        }


def next_steps(report: NightReport) -> list[Todo]:
    """What a person should do now, the most pressing first, each with its exact command."""
    steps: list[Todo] = []
    for part in report.broken:
        steps.append(Todo(text=f"{part.dataset} broke in {part.stopped_in}: {part.error}. {part.todo}"))
    steps += [Todo(text=problem) for problem in report.problems]
    overdue = {w.edit_run for w in report.overdue()}
    now = datetime.fromisoformat(report.time)
    for waiting in report.waiting:
        run = waiting.edit_run
        if waiting.missing:
            steps.append(
                Todo(
                    text=f"Edit run {run} of {waiting.dataset} lacks {waiting.missing} of its edits, "
                    "so that nothing in it can be decided. The night finishes its own runs; for another one, "
                    "ask for the same edit again.",
                    command=f"sdflow edit {waiting.dataset} --set NAME=VALUE",
                )
            )
            continue
        if waiting.undecided:
            late = f", some for {waiting.days(now):.1f} days" if run in overdue else ""
            edits = "1 edit waits" if waiting.undecided == 1 else f"{waiting.undecided} edits wait"
            steps.append(
                Todo(
                    text=f"{edits} for a decision in {waiting.dataset}{late}. Look at them first.",
                    command=f'sdflow decide {run} --approve all --by "YOUR NAME"',
                )
            )
        if waiting.unpublished:
            steps.append(
                Todo(
                    text=f"{waiting.unpublished} approved in {waiting.dataset}, not published.",
                    command=f"sdflow publish {run} --to TARGET",
                )
            )
    for part in report.datasets:
        if part.sources and part.sources.failed:
            steps.append(
                Todo(
                    text=f"{part.sources.failed} sources of {part.dataset} could not be read; "
                    "the next night tries them again."
                )
            )
        moved = sorted({d.attribute for d in (*part.drift, *part.drift_new) if d.verdict == "shifted"})
        if moved:
            steps.append(
                Todo(
                    text=f"In {part.dataset} the scores of {', '.join(moved)} no longer look like those that "
                    "the editor learned from. Look at the edits closely, and think of training again.",
                    command=f"sdflow train {part.dataset}",
                )
            )
    for dataset in report.due:
        steps.append(
            Todo(
                text=f"Other models were promoted, and {dataset} is not computed anew by them yet: the night "
                "used those before.",
                command=f"sdflow refresh {dataset}",
            )
        )
    if report.bundle_now != report.bundle:
        steps.append(
            Todo(
                text="Other models were promoted during the night. It kept those it had begun with; "
                "the next one uses the new ones as soon as they are in service.",
                command="sdflow models list",
            )
        )
    return steps
