"""A promotion is announced to a real Prefect server; without one, nothing is held up."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from cli.main import app
from sdflow_core.records.store import Store
from sdflow_core.weights.model_store import Bundle, Bundles
from tasks.announce import PROMOTED, announce_promotion


def promoted(store: Store) -> Any:
    bundle = Bundle(encoder="e1", template_scale=0.7, resolution=64, attributes=("a",))
    return Bundles(store).promote(bundle, "ann", "")


def events(url: str) -> list[dict[str, Any]]:
    asked = json.dumps({"filter": {"event": {"name": [PROMOTED]}}}).encode()
    request = urllib.request.Request(f"{url}/events/filter", asked, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())["events"]


@pytest.mark.slow
def test_promotion_and_rollback_reach_the_server(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = promoted(store)
    with prefect_test_harness(server_startup_timeout=120):
        url = PREFECT_API_URL.value()
        monkeypatch.setenv("PREFECT_API_URL", url)
        assert announce_promotion(first)
        Bundles(store).promote(
            Bundle(encoder="e2", template_scale=0.7, resolution=64, attributes=("a",)), "ann", ""
        )
        assert app(["--store", store.uri, "--json", "models", "rollback", "--by", "ann"]) == 0
        deadline = time.monotonic() + 60
        while len(found := events(url)) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)  # the server writes events behind its answer
    digest = str(first.payload["digest"])
    assert sorted((e["payload"]["bundle"], e["payload"]["entry"]) for e in found) == [
        (digest, 1),
        (digest, 3),
    ]


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/api", "no address"])
def test_without_a_server_it_is_only_not_sent(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    assert announce_promotion(promoted(store)) is False
