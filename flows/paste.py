"""Edits of one photograph -> that photograph with the edited faces in it, kept private."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.paste_back import paste_body
from tasks.reports import report
from tasks.story import QUIET, story


@flow(name="paste", **QUIET)
def paste(
    dataset: str,
    edit_ids: list[str],
    config: dict[str, Any] | None = None,
    store: str = "",
    parent: str = "",
) -> dict[str, Any]:
    """Paste edits of different faces of one source into it; no model is used, the original is only read."""
    with story("paste", dataset, store, parent, bundle=False) as job:
        facts = paste_body(job, edit_ids, config)
        report(job, "Pasted", {"edits": len(facts["edits"]), "reused": facts["reused"]})
    return facts
