"""What people look at: counts, metrics, the contact sheet. Nothing names a person or a file of a customer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from sdflow_core.method.request import change_of
from sdflow_core.records.ahead import ahead
from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import sha256_hex
from sdflow_core.records.shown_faces import takes_every_face
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from tasks import recipes
from tasks.consented import consented_column, kept_table
from tasks.runtime import load_bundle, store_at
from tasks.step import Job, StepRun, step

SHEET_ROWS_PER_VARIANT = 10  # of the overview
SHEET_ROWS_PER_PAGE = 60


def source_counts(store: Store, dataset: str, bundle: str) -> dict[str, Any]:
    """`{"in", "kept", "dropped", "failed", "reasons"}` of a dataset; in = kept + dropped + failed, always.

    A file counts once, by its latest verdict: what failed last night and was read tonight is no failure.
    """
    key = recipes.ingest(load_bundle(store, bundle)).key
    rows = Table(store, dataset, "sources").read(recipe=key, latest_by="uri", columns=["status", "reason"])
    status = Counter(rows["status"].to_pylist())
    reasons = Counter(
        r for r, s in zip(rows["reason"].to_pylist(), rows["status"].to_pylist(), strict=True) if s != "kept"
    )
    counts = {
        "in": rows.num_rows,
        "kept": status["kept"],
        "dropped": status["dropped"],
        "failed": status["failed"],
    }
    if counts["in"] != counts["kept"] + counts["dropped"] + counts["failed"]:
        raise ContractError("sources do not add up", expected="in = kept + dropped + failed", found=counts)
    return {**counts, "reasons": dict(reasons), **_face_counts(store, dataset, key)}


def _face_counts(store: Store, dataset: str, recipe: str) -> dict[str, Any]:
    """`{"faces": {"kept", "dropped", "reasons"}}` of the kept sources, where one may show several faces."""
    if not takes_every_face(store, recipe):
        return {}
    kept = kept_table(store, dataset, recipe, ["image_id"])["image_id"].to_pylist()
    table = Table(store, dataset, "faces")
    rows = table.read(recipe=recipe, columns=["image_id", "status", "reason"]).to_pylist()
    shown, times = set(kept), Counter(kept)  # files with the same bytes show the same faces once each
    mine = [row for row in rows if row["image_id"] in shown]
    reasons = Counter[str]()
    status = Counter[str]()
    for row in mine:
        status[row["status"]] += times[row["image_id"]]
        if row["status"] == "dropped":
            reasons[row["reason"]] += times[row["image_id"]]
    return {"faces": {"kept": status["kept"], "dropped": status["dropped"], "reasons": dict(reasons)}}


def counted(job: Job, table: str, plan: Any) -> dict[str, Any]:
    """Rows of a table by status after a story, and how many of them it computed."""
    import pyarrow.compute as compute

    store = store_at(job.store)
    new = plan.wanted - plan.held
    if table == "sources":
        return {**source_counts(store, job.dataset, job.bundle), "new": new, "remarks": list(plan.remarks)}
    rows = Table(store, job.dataset, table).read(recipe=plan.recipe, columns=["status", "face_id"])
    allowed = consented_column(store, job.dataset, recipes.ingest(load_bundle(store, job.bundle)).key)
    if rows.num_rows < plan.wanted:
        raise ContractError(f"rows are missing in {table}", expected=plan.wanted, found=rows.num_rows)
    mask: Any = cast(Any, compute).is_in(rows.column("face_id"), value_set=allowed.combine_chunks())
    status = Counter[str](rows.filter(mask).column("status").to_pylist())
    return {
        "in": plan.wanted,
        "kept": status["kept"],
        "dropped": status["dropped"],
        "failed": status["failed"],
        "new": new,
    }


def trained(job: Job, editor: Any, bundle: str) -> dict[str, Any]:
    """What a training gave."""
    row = Table(store_at(job.store), job.dataset, "editors").find(editor.row_key)
    return {"editor": editor.digest, "bundle": bundle, "losses": json.loads(row["metrics"]) if row else {}}


def planned(job: Job, plan: Any) -> dict[str, Any]:
    """What a dry run says."""
    left = plan.shards.wanted - plan.shards.held
    return {
        "edit_run": plan.edit_run,
        "rows": plan.shards.wanted,
        "held": plan.shards.held,
        "to_render": left - plan.refused,
        "refused_by_consent": plan.refused,
        "dry_run": True,
    }


def edited(job: Job, plan: Any) -> dict[str, Any]:
    """What an edit run gave."""
    store = store_at(job.store)
    sheet = store.url(edit_run_document(store, plan.edit_run)["sheet"])
    new = plan.shards.wanted - plan.shards.held
    return {
        "edit_run": plan.edit_run,
        "new": new,
        **edit_metrics(store, plan.edit_run),
        "contact_sheet": sheet,
    }


def rows_of_run(store: Store, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an edit run, in the order of their ids."""
    table = Table(store, document["dataset"], "edits")
    # only the shards that hold them are opened: a night's run is a small part of a large table
    rows = table.read(recipe=document["recipe"], row_keys=document["edit_ids"])
    return sorted(rows.to_pylist(), key=lambda row: row["row_key"])


def edit_run_document(store: Store, edit_run: str) -> dict[str, Any]:
    """The run's own record."""
    return json.loads(store.read(f"private/edit_runs/{edit_run}.json"))


def wanted_side(row: dict[str, Any], index: int, target: Any) -> bool:
    """Whether an edit was asked to show the attribute, by the labels before it."""
    goal = wanted_score(row, index, target)
    return row["labels_before"][index] < 0.5 if goal is None else goal >= 0.5


def wanted_score(row: dict[str, Any], index: int, target: Any) -> float | None:
    """Score that an edit was asked for, by the labels before it; None for a flip."""
    if target == "flip":
        return None
    change = change_of(target)
    return float(target) if change is None else min(max(row["labels_before"][index] + change, 0.0), 1.0)


def _aim_errors(rows: list[dict[str, Any]], index: int, target: Any, labels: str) -> list[float]:
    """Distances of what is read from what was asked for; none for flips, which ask for no value."""
    goals = [wanted_score(row, index, target) for row in rows]
    return [abs(r[labels][index] - g) for r, g in zip(rows, goals, strict=True) if g is not None]


def edit_metrics(store: Store, edit_run: str) -> dict[str, Any]:
    """Accuracy (labeller, judge), preservation, identity; failed and gated edits stay in the denominator."""
    document = edit_run_document(store, edit_run)
    rows = rows_of_run(store, document)
    names = document["attributes"]
    status = Counter(row["status"] for row in rows)
    out: dict[str, Any] = {"n": len(rows), "status": dict(sorted(status.items())), "attributes": {}}
    hits: list[bool] = []
    judged: list[bool] = []
    kept: list[float] = []
    for request in sorted({row["request"] for row in rows}):
        targets = json.loads(request)
        of = [row for row in rows if row["request"] == request and row["output"]]
        for name, target in targets.items():
            i = names.index(name)
            want = [wanted_side(row, i, target) for row in of]
            hit = [(row["labels_after"][i] >= 0.5) == w for row, w in zip(of, want, strict=True)]
            jury = [(row["judge_after"][i] >= 0.5) == w for row, w in zip(of, want, strict=True)]
            same = (
                [
                    float(
                        np.mean(
                            [
                                (row["judge_after"][b] >= 0.5) == (row["judge_before"][b] >= 0.5)
                                for b, other in enumerate(names)
                                if other not in targets
                            ]
                        )
                    )
                    for row in of
                ]
                if len(names) > len(targets)
                else []
            )
            label = name if len(targets) == 1 else f"{name} in {request}"
            out["attributes"][label] = {
                "n": len(of),
                "accuracy": _mean(hit),
                "judge_accuracy": _mean(jury),
                "preservation": _mean(same),
                "identity": _median([row["identity"] for row in of]),
                "strength": _mean([row["strength"] for row in of]),
                "tries": _mean([row["tries"] for row in of if row.get("tries") is not None]),
                "capped": sum(bool(row.get("capped")) for row in of),
                "aim_error": _mean(_aim_errors(of, i, target, "labels_after")),
                "judge_aim_error": _mean(_aim_errors(of, i, target, "judge_after")),
            }
            hits += hit
            judged += jury
            kept += same
    identities = [row["identity"] for row in rows if row["output"]]
    return {
        **out,
        "accuracy": _mean(hits),
        "judge_accuracy": _mean(judged),
        "preservation": _mean(kept),
        "identity": _median(identities),
    }


def _mean(values: list[Any]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _median(values: list[float]) -> float | None:
    return round(float(np.median(values)), 4) if values else None


@step("contact sheet")
def contact_sheet(run: StepRun, edit_run: str) -> str:
    """All that waits, source / before / after / difference: an overview, and pages that show every edit.

    Gives the overview's store key; the pages lie beside it.
    """
    from sdflow_core.faces.sheet import pages

    store = run.store
    document = edit_run_document(store, edit_run)
    rows = [row for row in rows_of_run(store, document) if row["status"] == "waiting"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for targets in document["requests"]:
        request = json.dumps(targets, sort_keys=True, separators=(",", ":"))
        groups[_heading(targets)] = [row for row in rows if row["request"] == request]
    parts = list(pages(groups, SHEET_ROWS_PER_PAGE))
    for number, part in enumerate(parts, start=1):
        title = f"Edits to review: run {edit_run}, page {number} of {len(parts)}"
        _draw(store, document, part, title, page_key(document, number))
    few: dict[str, list[dict[str, Any]]] = {}
    for heading, of in groups.items():
        places = np.linspace(0, len(of) - 1, min(len(of), SHEET_ROWS_PER_VARIANT)).astype(int)
        shown = "all" if len(of) == len(places) else f"{len(places)} of {len(of)} shown"
        few[f"{heading} ({len(of)} waiting, {shown})"] = [of[place] for place in places]
    title = f"Edits to review: run {edit_run}"
    where = f"All {len(rows)} edits: {page_key(document, 1)} and on." if parts else ""
    _draw(store, document, few, title, document["sheet"], where)
    return document["sheet"]


def page_key(document: dict[str, Any], number: int) -> str:
    """Store key of one page of a run's contact sheet; pages count from 1."""
    return f"{document['sheet'].removesuffix('.png')}-{number:03d}.png"


def _heading(targets: dict[str, Any]) -> str:
    def said(target: Any) -> str:
        if target == "flip":
            return ": the opposite"
        return f" by {target}" if change_of(target) is not None else f" to {target:g}"

    return ", ".join(f"{name}{said(target)}" for name, target in sorted(targets.items()))


def _draw(
    store: Store,
    document: dict[str, Any],
    groups: Mapping[str, Sequence[dict[str, Any]]],
    title: str,
    key: str,
    where: str = "",
) -> None:
    from sdflow_core.faces.pixels import read_png
    from sdflow_core.faces.sheet import SheetRow
    from sdflow_core.faces.sheet import contact_sheet as draw

    crops = _crops(store, document["dataset"], {row["face_id"] for part in groups.values() for row in part})

    def shown(row: dict[str, Any]) -> SheetRow:
        return SheetRow(
            read_png(store.read(row["before"])),
            read_png(store.read(row["output"])),
            _caption(row, json.loads(row["request"]), document["attributes"]),
            read_png(store.read(crops[row["face_id"]])),
        )

    note = f"Source is what was handed over, Before its reconstruction that the edit starts from. {where}"
    drawn = {heading: list(ahead(store, shown, part)) for heading, part in groups.items()}
    store.put(key, draw(drawn, title, columns=2, note=note.strip()))


def _crops(store: Store, dataset: str, face_ids: set[str]) -> dict[str, str]:
    # of a face that was looked at by several detectors, the row committed last
    rows = Table(store, dataset, "faces").read(
        columns=["face_id", "crop"], statuses=["kept"], latest_by="face_id", values=sorted(face_ids)
    )
    return dict(zip(rows["face_id"].to_pylist(), rows["crop"].to_pylist(), strict=True))


def _caption(row: dict[str, Any], targets: dict[str, Any], names: list[str]) -> str:
    parts = [
        f"{n} {row['labels_before'][names.index(n)]:.2f} to {row['labels_after'][names.index(n)]:.2f}"
        for n in sorted(targets)
    ]
    capped = "  capped" if row.get("capped") else ""
    return f"{row['row_key'][:8]}  {', '.join(parts)}  identity {row['identity']:.2f}{capped}"


@step("report")
def report(run: StepRun, title: str, facts: dict[str, Any]) -> None:
    """Mirror counts to the Prefect UI as an artifact for people."""
    from prefect.artifacts import create_markdown_artifact

    lines = [f"# {title}", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items())]
    # Prefect allows lower-case letters, digits and dashes; a name of others keeps a digest to stay unique
    plain = re.sub(r"[^a-z0-9]+", "-", f"{run.job.dataset} {title}".lower()).strip("-")
    key = (
        f"sdflow-{plain}"
        if run.job.dataset.isascii()
        else f"sdflow-{plain}-{sha256_hex(run.job.dataset.encode())[:8]}"
    )
    create_markdown_artifact(key=key.rstrip("-"), markdown="\n".join(lines))
