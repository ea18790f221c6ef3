"""Which sources may be worked on now: kept by the latest `ingest`, under a consent that has not ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, cast

import pyarrow as pa

from sdflow_core.records.shown_faces import takes_every_face, with_every_face
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table

_CONSENT = ("consent", "consent_attributes", "consent_expires")


def today() -> date:
    """The day that counts for consents: UTC, as in `publish`."""
    return datetime.now(UTC).date()


def kept_table(store: Store, dataset: str, recipe: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of the addresses whose latest verdict is `kept`; `recipe` is that of `ingest`.

    A file that was replaced under its address is out with that: only its newest version is a source. Where
    ingest takes every face of a picture and `face_id` is asked for, a source stands there once a face.
    """
    table = Table(store, dataset, "sources")
    if "face_id" not in columns or not takes_every_face(store, recipe):
        return table.read(recipe=recipe, latest_by="uri", statuses=["kept"], columns=columns)
    whole = list(dict.fromkeys([*columns, "image_id"]))
    sources = table.read(recipe=recipe, latest_by="uri", statuses=["kept"], columns=whole)
    return with_every_face(store, dataset, recipe, sources).select(list(columns))


def kept_sources(store: Store, dataset: str, recipe: str) -> list[dict[str, Any]]:
    """`kept_table` as mappings, for those who need all of it: a mapping for each face that a source shows."""
    columns = ["source_id", "uri", "image_id", "face_id", *_CONSENT]
    return kept_table(store, dataset, recipe, columns).to_pylist()


def ended(source: dict[str, Any], day: date) -> str:
    """Why the consent of a kept source holds no longer; empty while it does. The last day counts."""
    expires = source["consent_expires"]
    return f"consent ended on {expires}" if expires and date.fromisoformat(expires) < day else ""


def consented_column(store: Store, dataset: str, recipe: str) -> Any:
    """Faces that at least one source shows whose consent holds today, as an arrow column; some twice.

    Latents, labels and editors are made of these alone: a face that nobody consents to any more stays in the
    records, but nothing new is computed from it.
    """
    import pyarrow.compute as compute

    day = today()
    rows = kept_table(store, dataset, recipe, ["face_id", "consent_expires"])
    expires: Any = rows.column("consent_expires")
    over = [text for text in expires.unique().to_pylist() if ended({"consent_expires": text}, day)]
    faces: Any = rows.column("face_id")
    if not over:
        return faces
    gone: Any = cast(Any, compute).is_in(expires, value_set=pa.array(over, pa.string()))
    return faces.filter(cast(Any, compute).invert(gone))


def consented_faces(store: Store, dataset: str, recipe: str) -> set[str]:
    """`consented_column` as a set."""
    return set(consented_column(store, dataset, recipe).to_pylist())
