"""`sdflow deploy`: work pool, limits, deployments and the watch over silent runs.

All of it is said in `deployments/prefect.yaml`. Doing it again changes nothing but what is given: a policy,
a cron or a time zone that is not given stays as it is on the server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cli.output import progress, result, state, table

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

    from sdflow_core.records.policy import NightlyPolicy
    from sdflow_core.records.store import Store

__all__ = ["register", "source"]

_NIGHTLY = "nightly"
_DEPLOY_SECONDS = 300
_WATCH = "sdflow: a silent run is Crashed"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("deploy")(deploy)


def deploy(
    context: typer.Context,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="POLICY.toml", help="What every night does.")
    ] = None,
    cron: Annotated[str | None, typer.Option("--cron", help="When, e.g. '0 2 * * *'.")] = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", help="Of the cron, e.g. Europe/Berlin.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="How many stories may compute at a time.")
    ] = None,
) -> None:
    """Put work pool, limits, schedules and deployments on the server; what is not given stays as it is."""
    from cli.server import live_server, prefect_server
    from sdflow_core.records.errors import ContractError

    now = state(context)
    store = now.store()
    given: dict[str, Any] | None = None
    if policy is not None:
        from sdflow_core.records.policy import load_policy

        checked = load_policy(policy)
        _check_attributes(store, checked)
        given = checked.model_dump(mode="json", exclude_none=True)
    _check_when(cron, timezone)
    if not os.environ.get("PREFECT_API_URL") and live_server(now.store_uri) is None:
        raise ContractError(
            "there is no Prefect server to deploy to",
            todo="`sdflow up` starts one on this machine; or set PREFECT_API_URL",
        )
    with ExitStack() as stack:
        url = stack.enter_context(prefect_server(now.store_uri))
        bar = stack.enter_context(progress(now, "deploying", 3, unit="steps"))
        from prefect.client.orchestration import get_client

        _check_cron(cron)
        client = stack.enter_context(get_client(sync_client=True))
        plan = source()
        held = _held(client)
        _fill_in(plan, held, policy=given, cron=cron, timezone=timezone)
        extra = plan.pop("sdflow")
        _pool(client, extra["work_pool"])
        limits = _limits(client, extra["limits"], gpus)
        bar.advance()
        _hand_over(plan, now.store_uri, store.uri)
        bar.advance()
        _watch(client, int(extra["silence_seconds"]))
        found = [_told(client, item) for item in plan["deployments"]]
        bar.advance()
    document = {"url": url, "work_pool": extra["work_pool"]["name"], "limits": limits, "deployments": found}
    result(now, document, lambda: _show(document))


def source() -> dict[str, Any]:
    """`deployments/prefect.yaml` as it was installed."""
    from importlib.resources import files

    import yaml

    text = files("deployments").joinpath("prefect.yaml").read_text("utf-8")
    return cast("dict[str, Any]", yaml.safe_load(text))


# -- inside


def _check_when(cron: str | None, timezone: str | None) -> None:
    from zoneinfo import ZoneInfo

    from sdflow_core.records.errors import ContractError

    if timezone is not None:
        try:
            ZoneInfo(timezone)
        except (KeyError, ValueError, OSError):
            raise ContractError(
                "unknown time zone",
                expected="a name such as Europe/Berlin",
                found=timezone,
                where="--timezone",
            ) from None
    if cron is not None and len(cron.split()) != 5:
        raise ContractError(
            "this is no cron", expected="minute hour day month weekday", found=cron, where="--cron"
        )


def _check_cron(cron: str | None) -> None:
    """As Prefect reads it, before anything is changed on the server."""
    from prefect.client.schemas.schedules import CronSchedule

    from sdflow_core.records.errors import ContractError

    if cron is None:
        return
    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise ContractError(
            "this is no cron",
            expected="minute hour day month weekday, such as '0 2 * * *'",
            found=cron,
            where="--cron",
        ) from None


def _check_attributes(store: Store, policy: NightlyPolicy) -> None:
    """Refuse today what would break the night, where models are in force already."""
    from sdflow_core.records.errors import ContractError
    from sdflow_core.weights.model_store import Bundles, edited_attributes

    bundle = Bundles(store).current()
    asked = {name for part in policy.datasets for request in part.requests for name in request}
    known = edited_attributes(store, bundle) if bundle is not None else ()
    unknown = sorted(asked - set(known))
    if bundle is not None and unknown:
        raise ContractError(
            f"the policy asks for {', '.join(unknown)}, which the models in force do not edit",
            expected=f"one of {', '.join(known)}",
            todo="correct the policy, or train an editor for them (`sdflow train DATASET --attributes ...`)",
        )


def _held(client: SyncPrefectClient) -> dict[str, Any]:
    """Policy, cron and time zone of the nightly deployment on the server, as far as there is one."""
    from prefect.exceptions import ObjectNotFound

    try:
        there = client.read_deployment_by_name(f"{_NIGHTLY}/{_NIGHTLY}")
    except ObjectNotFound:
        return {}
    held: dict[str, Any] = {"policy": there.parameters.get("policy")}
    for entry in there.schedules:
        if getattr(entry.schedule, "cron", None):
            held.update(cron=getattr(entry.schedule, "cron", None), active=entry.active)
            held.update(timezone=getattr(entry.schedule, "timezone", None))
    return held


def _fill_in(
    plan: dict[str, Any],
    held: dict[str, Any],
    *,
    policy: dict[str, Any] | None,
    cron: str | None,
    timezone: str | None,
) -> None:
    """What is given, else what the server has, else what the file says. No policy: no night is scheduled."""
    item = next(each for each in plan["deployments"] if each["name"] == _NIGHTLY)
    schedule = item["schedules"][0]
    schedule["cron"] = cron or held.get("cron") or schedule["cron"]
    schedule["timezone"] = timezone or held.get("timezone") or schedule["timezone"]
    wanted = policy or held.get("policy")
    if wanted:
        item["parameters"] = {"policy": wanted}
        # one that a person paused stays paused, until a policy or a time is given
        paused = held.get("policy") and held.get("active") is False and not (policy or cron)
        schedule["active"] = not paused
    else:
        schedule["active"] = False


def _pool(client: SyncPrefectClient, wanted: dict[str, Any]) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    from sdflow_core.records.errors import ContractError

    try:
        there = client.read_work_pool(wanted["name"])
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=wanted["name"], type=wanted["type"]))
        return
    if there.type != wanted["type"]:
        raise ContractError(
            f"the work pool {wanted['name']} is of another type",
            expected=wanted["type"],
            found=there.type,
            todo="delete or rename that pool",
        )


def _limits(client: SyncPrefectClient, wanted: dict[str, int], gpus: int | None) -> dict[str, int]:
    """Makes what is missing; a limit that is there keeps its slots, unless --gpus is given."""
    from prefect.exceptions import ObjectNotFound

    slots: dict[str, int] = {}
    for name, default in wanted.items():
        try:
            slots[name] = gpus or client.read_global_concurrency_limit_by_name(name).limit
        except ObjectNotFound:
            slots[name] = gpus or default
        client.upsert_global_concurrency_limit_by_name(name, slots[name])
    return slots


def _hand_over(plan: dict[str, Any], store_uri: str, absolute: str) -> None:
    """Let Prefect's own command deploy the file that came out."""
    import yaml

    from cli.server import code_path, state_folder
    from sdflow_core.records.errors import SDFlowError

    home = state_folder(store_uri) / "prefect"
    file, log = home / "prefect.yaml", home / "deploy.log"
    file.write_text(yaml.safe_dump(plan, sort_keys=False), "utf-8")
    words = ["--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    with log.open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **code_path(), "SDFLOW_STORE": absolute},
            cwd=home,
            timeout=_DEPLOY_SECONDS,
            check=False,
        )
    if done.returncode:
        raise SDFlowError("Prefect could not deploy", found=f"exit code {done.returncode}", where=log)


def _watch(client: SyncPrefectClient, silence_seconds: int) -> None:
    """A run without a heartbeat is Crashed: else it would be Running for ever, and hold its slot."""
    from datetime import timedelta

    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    crashed = ChangeFlowRunState(
        name="Crashed",
        state=StateType.CRASHED,
        message="no heartbeat: its machine or its process is gone",
        force=False,
    )
    wanted = AutomationCore(
        name=_WATCH,
        description="The machine of the run is gone. The next run goes on from the records.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                *(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")),
            },
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence_seconds),
        ),
        actions=[crashed],
    )
    # One that is right stays untouched: a new one would forget whom it has heard of, and never miss them.
    right = False
    for there in client.read_automations_by_name(_WATCH):
        if not right and _essence(there) == _essence(wanted):
            right = True
        else:
            client.delete_automation(there.id)
    if not right:
        client.create_automation(wanted)


def _essence(automation: AutomationCore) -> dict[str, Any]:
    """What an automation does, without the ids that a server gives."""
    told = automation.model_dump(mode="json", include={"name", "trigger", "actions", "enabled"})
    trigger = {key: value for key, value in told["trigger"].items() if key != "id"}
    sets = {key: sorted(trigger[key]) for key in ("after", "expect", "for_each")}
    return {**told, "trigger": {**trigger, **sets}}


def _told(client: SyncPrefectClient, item: dict[str, Any]) -> dict[str, Any]:
    """What the server holds of one deployment now.

    Raises:
        SDFlowError: It does not hold it.
    """
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterName,
        DeploymentFilterTags,
    )

    from sdflow_core.records.errors import SDFlowError

    of = DeploymentFilter(
        name=DeploymentFilterName(any_=[item["name"]]), tags=DeploymentFilterTags(all_=item["tags"])
    )
    found = client.read_deployments(deployment_filter=of)
    if not found:
        raise SDFlowError("a deployment did not arrive on the server", expected=item["name"])
    there = found[0]
    schedules = [
        f"{getattr(s.schedule, 'cron', '')} {getattr(s.schedule, 'timezone', '')}".strip()
        + ("" if s.active else " (paused)")
        for s in there.schedules
    ]
    starts = [trigger["expect"] for trigger in item.get("triggers", [])]
    return {
        "name": f"{client.read_flow(there.flow_id).name}/{there.name}",
        "id": str(there.id),
        "schedules": schedules,
        "events": [name for names in starts for name in names],
        "ready": there.name != _NIGHTLY or bool(there.parameters.get("policy")),
    }


def _show(document: dict[str, Any]) -> None:
    rows: list[tuple[str, str]] = []
    for item in document["deployments"]:
        starts = [*item["schedules"], *(f"on {name}" for name in item["events"])]
        rows.append((item["name"], "; ".join(starts) or "on demand"))
    table(f"Deployed to {document['url']}", ("deployment", "starts"), rows)
    if not all(item["ready"] for item in document["deployments"]):
        print("The night has no policy yet, so it is not scheduled: `sdflow deploy --policy POLICY.toml`.")
