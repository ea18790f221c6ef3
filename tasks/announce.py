"""Telling a Prefect server what happened, as a hint: automations may start on it, nothing relies on it.

Sent over the server's HTTP interface with a short time limit. Prefect's own client would keep trying, and
would hold a command up at its exit when the server is gone.
"""

from __future__ import annotations

import base64
import json
import os
import urllib.request
import uuid
from datetime import UTC, datetime
from typing import Any

from sdflow_core.records.journal import Entry

__all__ = ["PROMOTED", "announce_bundle", "announce_promotion", "emit"]

PROMOTED = "sdflow.bundle.promoted"
_SECONDS = 3.0


def announce_promotion(entry: Entry) -> bool:
    """Say that a bundle is in force, with payload `{"bundle": digest, "entry": number}`; see `emit`."""
    return announce_bundle(str(entry.payload["digest"]), entry.number)


def announce_bundle(bundle: str, entry: int | None = None) -> bool:
    """Say (again) which bundle is in force, by its digest."""
    resource = {"prefect.resource.id": f"sdflow.bundle.{bundle}", "prefect.resource.name": bundle[:12]}
    return emit(PROMOTED, resource, {"bundle": bundle, "entry": entry})


def emit(event: str, resource: dict[str, str], payload: dict[str, Any], seconds: float = _SECONDS) -> bool:
    """Send an event to the configured server (`PREFECT_API_URL`).

    Returns:
        Whether the server took it. No server, no answer in time or a refusal are no errors.
    """
    url = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not url:
        return False
    said = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": resource,
        "payload": payload,
    }
    headers = {"Content-Type": "application/json", **_authorization()}
    try:
        request = urllib.request.Request(f"{url}/events", json.dumps([said]).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=seconds):
            return True
    except (OSError, ValueError):
        return False  # the records say what is in force; whoever missed this asks them


def _authorization() -> dict[str, str]:
    """As Prefect's client does it: a key for Prefect Cloud, or user and password of a server's own."""
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if pair := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
