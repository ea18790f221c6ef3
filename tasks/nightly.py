"""A night's own steps: one dataset's part behind a wall, what an earlier death left open, and the report."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sdflow_core.records.drift import Drift, drift
from sdflow_core.records.errors import ContractError, NotFoundError, SDFlowError
from sdflow_core.records.night_report import ClosedRun, DatasetNight, Edits, NightReport, Sources
from sdflow_core.records.policy import DatasetPolicy, NightlyPolicy
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from sdflow_core.records.waiting import waiting_runs
from sdflow_core.weights.model_store import Bundles, ModelStore, edited_attributes
from tasks import recipes
from tasks.announce import announce_bundle
from tasks.bodies import ingest_body, invert_body, label_body, queue_body
from tasks.runtime import CALLS, check_licences, load_bundle, store_at
from tasks.service import bundle_in_service, pinned, refresh_due
from tasks.step import Job, StepRun, step
from tasks.story import story

NIGHT = "nightly"
_REASONS = 12  # of a dataset that a report names; the tables hold every row's


class _Part:
    """What is known of one dataset's part so far; it survives the error that ends the part."""

    def __init__(self, night: Job, policy: DatasetPolicy) -> None:
        self.night, self.policy = night, policy
        self.now = ""
        self.seconds: dict[str, float] = {}
        self.found: dict[str, Any] = {}
        self._calls = Counter(CALLS)

    @contextmanager
    def telling(self, name: str, parent: str) -> Generator[Job]:
        """A story of this part, timed."""
        self.now = name
        started = time.perf_counter()
        try:
            with story(name, self.policy.dataset, self.night.store, parent, pinned=self.night.bundle) as job:
                yield job
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 3)

    def result(self, state: Literal["done", "broken", "off"], **more: Any) -> DatasetNight:
        """The part as the report shows it."""
        calls = {name: n - self._calls[name] for name, n in sorted(CALLS.items()) if n > self._calls[name]}
        facts: dict[str, Any] = {**self.found, "seconds": self.seconds, "model_calls": calls, **more}
        return DatasetNight(dataset=self.policy.dataset, state=state, bundle=self.night.bundle, **facts)


@step("pin bundles")
def pin_bundles(run: StepRun, policy: NightlyPolicy) -> dict[str, str]:
    """The bundle in service for every dataset, by digest: a promotion during the night changes nothing.

    Where a promoted bundle waits for its refresh, that is the bundle before it.
    """
    pins: dict[str, str] = {}
    for part in policy.datasets:
        service = bundle_in_service(run.store, part.dataset)
        pins[part.dataset] = pinned(run.store, service) if service is not None else run.job.bundle
        if service is not None:
            check_licences(run.store, service)
    return pins


def with_bundle(night: Job, pins: dict[str, str], part: DatasetPolicy) -> Job:
    """The night as one dataset sees it: with its own bundle."""
    return night.model_copy(update={"bundle": pins[part.dataset]})


def dataset_night(night: Job, policy: DatasetPolicy) -> DatasetNight:
    """Ingest, invert, label, edit one dataset; whatever goes wrong stays in this dataset and is told."""
    part = _Part(night, policy)
    if not policy.enabled:
        return part.result("off")
    try:
        with story(
            "dataset of a night", policy.dataset, night.store, night.parent, pinned=night.bundle
        ) as job:
            _stories(part, job)
    except Exception as error:  # one broken dataset must not keep the others from their night
        return part.result("broken", stopped_in=part.now, **_told(error))
    return part.result("done")


def _stories(part: _Part, job: Job) -> None:
    policy, found = part.policy, part.found
    part.now = "policy"
    _known_attributes(job, policy)
    with part.telling("ingest", job.parent) as inner:
        counts = ingest_body(inner, policy.source, policy.consent)
        found["sources"] = Sources(
            total=counts["in"],
            tried=counts["new"],
            reasons=_most(Counter(counts["reasons"])),
            **{name: counts[name] for name in ("kept", "dropped", "failed")},
        )
    if not found["sources"].kept:
        return  # nobody to encode: no error, every source has its reason
    with part.telling("invert", job.parent) as inner:
        found["new_latents"] = invert_body(inner)["new"]
    with part.telling("label", job.parent) as inner:
        found["new_labels"] = label_body(inner)["new"]
        found["drift"], found["drift_new"] = _drift(inner, found["new_labels"])
    with part.telling("edit", job.parent) as inner:
        plan = queue_body(inner, [dict(request) for request in policy.requests], policy.gates.overrides())
        found["edit_runs"] = plan.edit_runs
        found["edits"] = _edits(inner, plan)


def _known_attributes(job: Job, policy: DatasetPolicy) -> None:
    """Refuse what the models do not know before a single picture is read."""
    store = store_at(job.store)
    known = edited_attributes(store, load_bundle(store, job.bundle))
    unknown = sorted({name for request in policy.requests for name in request} - set(known))
    if unknown:
        raise ContractError(
            f"the policy asks for {', '.join(unknown)}, which the models in force do not edit",
            expected=f"one of {', '.join(known)}",
            todo=f"correct the policy, or run `sdflow train {job.dataset} --attributes ...`",
        )


def _told(error: Exception) -> dict[str, str]:
    # `found` and `where` may name files of people; lineage, keeps the whole message
    if isinstance(error, SDFlowError):
        said = f"{type(error).__name__}, {error.what}"
        if error.expected is not None:
            said += f" (expected {error.expected})"
        todo = error.todo or "see its FAIL event in lineage, mend it and run the night again"
        return {"error": said, "todo": f"{todo[:1].upper()}{todo[1:].rstrip('.')}."}
    return {
        "error": f"{type(error).__name__}, an unexpected error",
        "todo": "The message stands in lineage under the run's FAIL event.",
    }


def _last(table: Table, recipe: str, columns: list[str], count: int) -> Any:
    """The rows committed last, which are tonight's."""
    rows = table.read(recipe=recipe, columns=columns)
    return rows.slice(max(rows.num_rows - count, 0))


def _edits(job: Job, plan: Any) -> Edits:
    new = plan.shards.wanted - plan.shards.held
    table = Table(store_at(job.store), job.dataset, "edits")
    rows = _last(table, plan.shards.recipe, ["status", "reason"], new) if new else None
    status = Counter[str](rows["status"].to_pylist() if rows else [])
    reasons = Counter(_family(str(r)) for r in (rows["reason"].to_pylist() if rows else []) if r)
    return Edits(
        wanted=plan.shards.wanted,
        new=new,
        rendered=new - plan.refused,
        waiting=status["waiting"],
        gated=status["gated"],
        refused_by_consent=plan.refused,
        reasons=_most(reasons),
    )


def _family(reason: str) -> str:
    """A gate's reason without the one row's figure, so that equal reasons are counted together."""
    reason = re.sub(r"^identity \S+ below", "identity below", reason)
    return re.sub(r"changed by \S+ at most (\S+) allowed", r"changed by more than \1", reason)


def _most(reasons: Counter[str]) -> dict[str, int]:
    most = dict(reasons.most_common(_REASONS))
    others = reasons.total() - sum(most.values())
    return most | ({"other reasons": others} if others else {})


def _drift(job: Job, new: int) -> tuple[tuple[Drift, ...], tuple[Drift, ...]]:
    """All labels of the dataset, and tonight's, against what the editor in force learned from."""
    store = store_at(job.store)
    bundle = load_bundle(store, job.bundle)
    card = ModelStore(store).card(bundle.editor) if bundle.editor else {}
    learned: dict[str, list[int]] = card.get("label_histograms") or {}
    table, names = Table(store, job.dataset, "labels"), list(bundle.attributes)
    rows = _last(table, recipes.label(bundle).key, names, 2**62)

    def compared(some: Any) -> tuple[Drift, ...]:
        return tuple(drift(name, some[name].to_numpy(), learned.get(name)) for name in names)

    recent = rows.slice(max(rows.num_rows - new, 0))
    return compared(rows), compared(recent) if 0 < new < rows.num_rows else ()


@step("reconcile")
def reconcile_runs(run: StepRun) -> tuple[ClosedRun, ...]:
    """Close what earlier deaths left open; gives the runs that are closed now."""
    from sdflow_core.records.reconcile import reconcile

    return tuple(ClosedRun(run=one.run, job=one.job, dataset=one.dataset) for one in reconcile(run.store))


def write_report(
    night: Job,
    policy: NightlyPolicy,
    parts: tuple[DatasetNight, ...],
    orphans: tuple[ClosedRun, ...],
    seconds: float,
) -> NightReport:
    """Write the page and its JSON twin into the store; the page comes last."""
    from sdflow_core.records.keys import canonical_json
    from sdflow_core.records.night_page import document, page

    store = store_at(night.store)
    problems: list[str] = []
    waiting: list[Any] = []
    for name in (part.dataset for part in policy.datasets):
        try:
            waiting += waiting_runs(store, [name])
        except SDFlowError as error:  # the report must come out above all when records are broken
            problems.append(f"What waits in {name} could not be listed: {error.what}.")
    due: list[str] = []
    try:
        names = {part.dataset for part in policy.datasets}
        due = [name for name in refresh_due(store) if name in names]
    except SDFlowError as error:
        problems.append(f"What waits for a refresh could not be listed: {error.what}.")
    now = Bundles(store).current()
    report = NightReport(
        run=night.parent,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=night.bundle,
        bundle_now=now.digest if now else "",
        policy=policy.digest,
        remind_after_days=policy.remind_after_days,
        datasets=parts,
        orphans=orphans,
        waiting=tuple(waiting),
        due=tuple(due),
        problems=tuple(problems),
        seconds=round(seconds, 2),
    )
    store.put(f"{report.key}/report.json", canonical_json(document(report)))
    undecided = {one.edit_run for one in report.waiting if one.undecided}
    shown = [edit_run for part in parts for edit_run in part.edit_runs if edit_run in undecided]
    store.put(f"{report.key}/index.html", page(report, _sheets(store, shown)).encode())
    return report


def _sheets(store: Store, edit_runs: list[str]) -> dict[str, bytes]:
    """Contact sheets by run; one that was removed is left out."""
    found: dict[str, bytes] = {}
    for edit_run in edit_runs:
        with suppress(NotFoundError):
            found[edit_run] = store.read(f"private/edit_runs/{edit_run}/sheet.png")
    return found


@step("night report")
def mirror_report(run: StepRun, key: str) -> None:
    """Link the page in the Prefect UI, with its figures: no face, no name of a file."""
    from prefect.artifacts import create_link_artifact

    report: dict[str, Any] = json.loads(run.store.read(f"{key}/report.json"))
    lines = ["| dataset | state | in | new | edited | gated | waiting | seconds |", f"|{'---|' * 8}"]
    for part in report["datasets"]:
        sources, edits = part["sources"] or {}, part["edits"] or {}
        cells = [
            part["dataset"],
            part["state"],
            *(sources.get(name, "") for name in ("in", "new")),
            *(edits.get(name, "") for name in ("rendered", "gated", "waiting")),
            round(sum(part["seconds"].values()), 1),
        ]
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    todo = [f"- {one['text']} " + (f"`{one['command']}`" if one["command"] else "") for one in report["todo"]]
    address = run.store.url(f"{key}/index.html")
    create_link_artifact(
        key="sdflow-nightly",
        link=address if "://" in address else Path(address).as_uri(),
        link_text=f"Night of {report['time'][:10]}",
        description="\n".join([*lines, "", *todo]),
    )


def remind_of_refresh(report: NightReport) -> bool:
    """Say again what is in force when datasets wait for it: the event of the promotion may have been lost.

    A refresh that waits for a person finds its figures there and ends at once.
    """
    return bool(report.due) and announce_bundle(report.bundle_now)


def night_facts(job: Job, report: NightReport) -> dict[str, Any]:
    """What the flow returns: the report's figures and where it lies.

    Raises:
        ContractError: A dataset broke; the others were finished first, and all of it stands in the report.
    """
    from sdflow_core.records.night_page import document

    address = store_at(job.store).url(f"{report.key}/index.html")
    if report.broken:
        told = "; ".join(f"{part.dataset} in {part.stopped_in}: {part.error}" for part in report.broken)
        enabled = sum(part.state != "off" for part in report.datasets)
        raise ContractError(
            f"{len(report.broken)} of {enabled} datasets broke, all others were finished",
            found=told,
            where=f"report {address}",
            todo="; ".join(dict.fromkeys(part.todo for part in report.broken)),
        )
    return {**document(report), "report": address}
