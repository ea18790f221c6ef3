"""Which sources may be worked on now: kept by the latest `ingest`, under a consent that has not ended."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table

_CONSENT = ("consent", "consent_attributes", "consent_expires")


def today() -> date:
    """The day that counts for consents: UTC, as in `publish`."""
    return datetime.now(UTC).date()


def kept_sources(store: Store, dataset: str, recipe: str) -> list[dict[str, Any]]:
    """The addresses whose latest verdict is `kept`; `recipe` is that of `ingest`.

    A file that was replaced under its address is out with that: only its newest version is a source.
    """
    columns = ["source_id", "uri", "image_id", "face_id", *_CONSENT]
    table = Table(store, dataset, "sources")
    return table.read(recipe=recipe, latest_by="uri", statuses=["kept"], columns=columns).to_pylist()


def ended(source: dict[str, Any], day: date) -> str:
    """Why the consent of a kept source holds no longer; empty while it does. The last day counts."""
    expires = source["consent_expires"]
    return f"consent ended on {expires}" if expires and date.fromisoformat(expires) < day else ""


def consented_faces(store: Store, dataset: str, recipe: str) -> set[str]:
    """Faces that at least one source shows whose consent holds today.

    Latents, labels and editors are made of these alone: a face that nobody consents to any more stays in the
    records, but nothing new is computed from it.
    """
    day = today()
    return {s["face_id"] for s in kept_sources(store, dataset, recipe) if not ended(s, day)}
