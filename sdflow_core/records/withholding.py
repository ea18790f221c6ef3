"""Why an edit may not leave: what the consents in force say about it today."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any, cast

import pyarrow as pa

from .store import Store
from .tables import Table

__all__ = ["CONSENT_COLUMNS", "Consents", "refusal"]

CONSENT_COLUMNS = ("consent", "consent_attributes", "consent_expires")
_AT_A_TIME = 4096  # edits that are Python objects together


class Consents:
    """The consents in force at each address of a dataset, for questions about many edits."""

    def __init__(self, store: Store, dataset: str, day: date | None = None) -> None:
        columns = ["source_id", *CONSENT_COLUMNS]
        table = Table(store, dataset, "sources").read(columns=columns, latest_by="uri")
        self._rows = table.combine_chunks()
        self._day = day or datetime.now(UTC).date()

    def why_not(self, edits: pa.Table) -> Iterator[tuple[str, str]]:
        """Row key, and why that edit may not leave today; empty when it may. The edits keep their order."""
        import pyarrow.compute

        known: Any = self._rows.column("source_id").combine_chunks()
        for start in range(0, edits.num_rows, _AT_A_TIME):
            part = edits.select(["row_key", "source_id", "request"]).slice(start, _AT_A_TIME)
            place = cast(Any, pyarrow.compute).index_in(part.column("source_id"), value_set=known)
            consents = self._rows.take(place).to_pylist()
            for row, said in zip(part.to_pylist(), consents, strict=True):
                yield str(row["row_key"]), refusal(said if said["source_id"] else None, row, self._day)

    def let_leave(self, edits: pa.Table) -> list[str]:
        """Keys of the edits that may leave today."""
        return [key for key, reason in self.why_not(edits) if not reason]


def refusal(consent: dict[str, Any] | None, row: dict[str, Any], today: date) -> str:
    """Why consent does not let this edit leave; empty when it does."""
    if consent is None:
        return "its source was replaced by another file"
    if not consent["consent"]:
        return "there is no consent for its source any more"
    if consent["consent_expires"] and date.fromisoformat(str(consent["consent_expires"])) < today:
        return f"consent ended on {consent['consent_expires']}"
    allowed = {str(name) for name in consent["consent_attributes"] or ()}
    edited = set(cast("dict[str, Any]", json.loads(str(row["request"]))))
    beyond = sorted(edited - allowed)
    if "*" not in allowed and beyond:
        return f"consent does not allow to edit {', '.join(beyond)}"
    return ""
