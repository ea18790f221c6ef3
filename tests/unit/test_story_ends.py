"""A story that cannot write its last event: what broke it is told, and the records are mended later."""

from __future__ import annotations

from typing import Any

import pytest

from sdflow_core.records.errors import ContractError, PolicyError
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.objects import LocalStore
from sdflow_core.records.reconcile import reconcile
from sdflow_core.records.store import Store
from tasks.story import story


@pytest.mark.parametrize("reason", [PolicyError("a person must decide"), KeyboardInterrupt()])
def test_what_broke_a_story_is_told_when_its_end_cannot_be_written(
    reason: BaseException, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> bool:
        raise ContractError("the store cannot be written", found="No space left on device")

    with pytest.raises(type(reason)), story("ingest", "d", store.uri, bundle=False) as job:
        monkeypatch.setattr(LocalStore, "create", full)
        raise reason
    monkeypatch.undo()
    assert [event["eventType"] for event in Lineage(store).events(job.parent)] == ["START"]
    assert [orphan.run for orphan in reconcile(store)] == [job.parent]
    assert [event["eventType"] for event in Lineage(store).events(job.parent)] == ["START", "ABORT"]
