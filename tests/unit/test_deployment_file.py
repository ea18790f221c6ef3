"""`deployments/prefect.yaml` fits the flows it names, and what `sdflow deploy` fills in."""

from __future__ import annotations

import copy
import importlib
import inspect
from typing import Any

import pytest
from prefect import Flow

import cli.deploy as module
import cli.main as command
from cli.supervisor import POOL
from tasks.limits import device_slot

fill_in: Any = module._fill_in
POLICY = {"datasets": [{"dataset": "team"}]}


@pytest.fixture
def plan() -> dict[str, Any]:
    return copy.deepcopy(module.source())


def nightly(plan: dict[str, Any]) -> dict[str, Any]:
    return next(item for item in plan["deployments"] if item["name"] == "nightly")


def test_every_entrypoint_is_a_flow_with_the_parameters_that_are_given(plan: dict[str, Any]) -> None:
    assert [item["name"] for item in plan["deployments"]] == ["nightly", "refresh", "publish", "verify"]
    for item in plan["deployments"]:
        assert ":" not in item["entrypoint"], "with a colon Prefect copies a folder into each run"
        where, _, name = item["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(where), name)
        assert isinstance(flow, Flow)
        given = {key for trigger in item.get("triggers", []) for key in trigger.get("parameters", {})}
        assert given <= set(inspect.signature(flow.fn).parameters)
    assert plan["pull"] == []


def test_what_belongs_together_agrees(plan: dict[str, Any]) -> None:
    ours = plan["sdflow"]
    assert ours["work_pool"] == {"name": POOL, "type": "process"}
    for item in plan["deployments"]:
        variables = item["work_pool"]["job_variables"]["env"]
        assert item["work_pool"]["name"] == POOL
        assert variables["SDFLOW_GPU_LIMIT"] in ours["limits"]
        # a run is not called dead before several heartbeats are missing
        assert ours["silence_seconds"] >= 3 * int(variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


def test_without_a_policy_no_night_is_scheduled(plan: dict[str, Any]) -> None:
    fill_in(plan, {}, policy=None, cron=None, timezone=None)
    assert nightly(plan)["schedules"][0]["active"] is False
    assert "parameters" not in nightly(plan)


def test_given_before_held_before_file(plan: dict[str, Any]) -> None:
    file = nightly(plan)["schedules"][0].copy()
    held = {"policy": POLICY, "cron": "5 5 * * *", "timezone": "Asia/Tokyo", "active": True}
    first = copy.deepcopy(plan)
    fill_in(first, {}, policy=POLICY, cron=None, timezone=None)
    assert nightly(first)["schedules"][0] == {**file, "active": True}
    second = copy.deepcopy(plan)
    fill_in(second, held, policy=None, cron=None, timezone="Europe/Berlin")
    told = nightly(second)
    assert told["parameters"] == {"policy": POLICY}
    assert told["schedules"][0] == {**file, "cron": "5 5 * * *", "timezone": "Europe/Berlin", "active": True}


@pytest.mark.parametrize(("cron", "active"), [(None, False), ("1 1 * * *", True)])
def test_a_paused_night_stays_paused_until_it_is_given_a_time(
    plan: dict[str, Any], cron: str | None, active: bool
) -> None:
    held = {"policy": POLICY, "cron": "5 5 * * *", "timezone": "UTC", "active": False}
    fill_in(plan, held, policy=None, cron=cron, timezone=None)
    assert nightly(plan)["schedules"][0]["active"] is active


def test_without_a_limit_no_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody listens there
    with device_slot(), device_slot():
        pass


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "sdflow up"),
        (("--timezone", "Europe/Atlantis"), "Europe/Atlantis"),
        (("--cron", "at night"), "minute hour day month weekday"),
        (("--policy", "/nowhere/policy.toml"), "policy.toml"),
    ],
)
def test_what_cannot_be_deployed_says_why(
    words: tuple[str, ...], part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert command.app(["deploy", *words]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("cron", ["0 99 * * *", "every night at two o'clock", "* * * *"])
def test_a_cron_that_prefect_would_refuse_is_refused_by_name(cron: str) -> None:
    from cli.deploy import _check_cron  # pyright: ignore[reportPrivateUsage]
    from sdflow_core.records.errors import ContractError

    with pytest.raises(ContractError, match="no cron") as caught:
        _check_cron(cron)
    assert cron in str(caught.value)
