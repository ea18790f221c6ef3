"""Several datasets in one run, each by its policy: what is new comes in and ends in the review queue."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow

from sdflow_core.records.policy import NightlyPolicy
from tasks.nightly import (
    NIGHT,
    dataset_night,
    mirror_report,
    night_facts,
    pin_bundles,
    reconcile_runs,
    remind_of_refresh,
    with_bundle,
    write_report,
)
from tasks.story import QUIET, story


@flow(name="nightly", **QUIET)
def nightly(policy: NightlyPolicy, store: str = "") -> dict[str, Any]:
    """Ingest, invert, label and edit every dataset with the models in force now; publishes nothing."""
    started = time.perf_counter()
    with story(NIGHT, NIGHT, store) as night:
        orphans = reconcile_runs(night)
        pins = pin_bundles(night, policy)
        parts = tuple(dataset_night(with_bundle(night, pins, part), part) for part in policy.datasets)
        report = write_report(night, policy, parts, orphans, time.perf_counter() - started)
        mirror_report(night, report.key)
        remind_of_refresh(report)
        facts = night_facts(night, report)
    return facts
