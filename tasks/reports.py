"""What people look at: counts, metrics, the contact sheet. Nothing names a person or a file of a customer."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np

from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import sha256_hex
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from tasks import recipes
from tasks.runtime import load_bundle, store_at
from tasks.step import Job, StepRun, step

SHEET_ROWS_PER_VARIANT = 9


def source_counts(store: Store, dataset: str, bundle: str) -> dict[str, Any]:
    """`{"in", "kept", "dropped", "failed", "reasons"}` of a dataset; in = kept + dropped + failed, always."""
    key = recipes.ingest(load_bundle(store, bundle)).key
    rows = Table(store, dataset, "sources").read(
        recipe=key, latest_by="source_id", columns=["status", "reason"]
    )
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
    return {**counts, "reasons": dict(reasons)}


def counted(job: Job, table: str, plan: Any) -> dict[str, Any]:
    """Rows of a table by status after a story, and how many of them it computed."""
    store = store_at(job.store)
    new = plan.wanted - plan.held
    if table == "sources":
        return {**source_counts(store, job.dataset, job.bundle), "new": new}
    rows = Table(store, job.dataset, table).read(recipe=plan.recipe, columns=["status"])
    status = Counter(rows["status"].to_pylist())
    if rows.num_rows < plan.wanted:
        raise ContractError(f"rows are missing in {table}", expected=plan.wanted, found=rows.num_rows)
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
    wanted = set(document["edit_ids"])
    rows = Table(store, document["dataset"], "edits").read(recipe=document["recipe"]).to_pylist()
    return sorted((row for row in rows if row["row_key"] in wanted), key=lambda row: row["row_key"])


def edit_run_document(store: Store, edit_run: str) -> dict[str, Any]:
    """The run's own record."""
    return json.loads(store.read(f"private/edit_runs/{edit_run}.json"))


def wanted_side(row: dict[str, Any], index: int, target: Any) -> bool:
    """Whether an edit was asked to show the attribute, by the labels before it."""
    return row["labels_before"][index] < 0.5 if target == "flip" else float(target) >= 0.5


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
    """Before / after / difference per variant, as one page; gives its store key."""
    from sdflow_core.faces.pixels import read_png
    from sdflow_core.faces.sheet import SheetRow
    from sdflow_core.faces.sheet import contact_sheet as draw

    store = run.store
    document = edit_run_document(store, edit_run)
    rows = [row for row in rows_of_run(store, document) if row["status"] == "waiting"]
    key = document["sheet"]
    names = document["attributes"]
    groups: dict[str, list[SheetRow]] = {}
    for targets in document["requests"]:
        request = json.dumps(targets, sort_keys=True, separators=(",", ":"))
        of = [row for row in rows if row["request"] == request]
        chosen = [
            of[i] for i in np.linspace(0, len(of) - 1, min(len(of), SHEET_ROWS_PER_VARIANT)).astype(int)
        ]
        heading = ", ".join(
            f"{n}: the opposite" if t == "flip" else f"{n} to {t:g}" for n, t in sorted(targets.items())
        )
        heading = f"{heading} ({len(of)} waiting)"
        groups[heading] = [
            SheetRow(
                read_png(store.read(r["before"])),
                read_png(store.read(r["output"])),
                _caption(r, targets, names),
            )
            for r in chosen
        ]
    store.put(
        key,
        draw(
            groups,
            f"Edits to review: run {edit_run}",
            note="Before is the reconstruction that the edit starts from.",
        ),
    )
    return key


def _caption(row: dict[str, Any], targets: dict[str, Any], names: list[str]) -> str:
    parts = [
        f"{n} {row['labels_before'][names.index(n)]:.2f} to {row['labels_after'][names.index(n)]:.2f}"
        for n in sorted(targets)
    ]
    return f"{row['row_key'][:8]}  {', '.join(parts)}  identity {row['identity']:.2f}"


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
