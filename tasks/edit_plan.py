"""Latents x requests -> what is left to render: consent and bundle are checked, nothing is rendered."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sdflow_core.records.config import Config
from sdflow_core.records.decisions import edit_runs
from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import canonical_json, row_key, sha256_hex
from sdflow_core.records.tables import Table
from sdflow_core.records.waiting import time_of
from tasks import recipes
from tasks.consented import ended, kept_sources, today
from tasks.plans import Shards, write_plans
from tasks.runtime import load_bundle, settings
from tasks.step import StepRun, step


class EditPlan(Config):
    """A planned edit run.

    Attributes:
        edit_run: Its id: the same request over the same rows has the same id.
        shards: What is left to render.
        refused: Of the rows to come, those that consent does not cover or that have no latent: dropped rows.
    """

    edit_run: str
    shards: Shards
    refused: int


def variants_of(requests: list[dict[str, Any]]) -> tuple[Any, ...]:
    """Requests as a person writes them -> checked variants.

    Raises:
        ContractError: A target that is neither in [0, 1] nor `flip`, naming the attribute and the bound.
    """
    from pydantic import ValidationError

    from sdflow_core.method.request import Variant

    try:
        variants = tuple(Variant(targets=request) for request in requests)
    except ValidationError as error:
        what = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
        raise ContractError(
            "the request", found=what, expected="attribute=VALUE with VALUE in [0, 1], or attribute=flip"
        ) from None
    if not variants:
        raise ContractError(
            "nothing to edit", expected="at least one attribute", todo="pass --set smiling=0.9"
        )
    return variants


def edit_config(config: dict[str, Any] | None) -> Any:
    """How requests are carried out, from plain values; the defaults when there are none."""
    from sdflow_core.method.request import EditConfig

    return EditConfig.model_validate(config or {})


class QueuePlan(Config):
    """What a night adds to the review queue.

    Attributes:
        edit_runs: Runs to finish now: a new one, and those that a killed night left without rows or sheet.
        shards: What is left to render.
        refused: Of the rows to come, those that consent does not cover.
    """

    edit_runs: tuple[str, ...]
    shards: Shards
    refused: int


def _checked(run: StepRun, variants: tuple[Any, ...], config: Any) -> tuple[Any, str]:
    """The pinned bundle, which can carry out these requests, and the recipe."""
    from sdflow_core.method.request import check_variant

    bundle = load_bundle(run.store, run.job.bundle)
    if bundle.editor is None:
        raise ContractError(
            "the promoted bundle has no editor",
            todo=f"run `sdflow train {run.job.dataset}`; after a promotion of other models `sdflow refresh "
            f"{run.job.dataset}`, or `sdflow models rollback`",
        )
    for variant in variants:
        check_variant(variant, bundle.attributes)
    return bundle, run.using(recipes.edit(bundle, config))


def _edit_run(dataset: str, recipe: str, edit_ids: list[str]) -> str:
    return sha256_hex(canonical_json([dataset, recipe, edit_ids]))[:12]


def _announce(
    run: StepRun, edit_run: str, recipe: str, bundle: Any, variants: tuple[Any, ...], edit_ids: list[str]
) -> None:
    """Keep what an edit run is about, before its first picture."""
    document = {
        "edit_run": edit_run,
        "dataset": run.job.dataset,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": recipe,
        "requests": [v.model_dump(mode="json")["targets"] for v in variants],
        "edit_ids": edit_ids,
        "bundle": run.job.bundle,
        "editor": bundle.editor,
        "attributes": list(bundle.attributes),
        "sheet": f"private/edit_runs/{edit_run}/sheet.png",
    }
    run.store.create(f"private/edit_runs/{edit_run}.json", canonical_json(document))


@step("plan edit")
def plan_edit(run: StepRun, variants: tuple[Any, ...], config: Any, dry_run: bool = False) -> EditPlan:
    """Cross kept sources with variants, check consent, plan what the table lacks; dry runs write nothing."""
    store, dataset = run.store, run.job.dataset
    bundle, recipe = _checked(run, variants, config)
    items = _wanted(run, variants, recipe, bundle)
    edit_ids = sorted(item["row_key"] for item in items)
    edit_run = _edit_run(dataset, recipe, edit_ids)
    held = Table(store, dataset, "edits").held(recipe)
    missing = [{**item, "edit_run": edit_run} for item in items if item["row_key"] not in held]
    refused = sum(bool(item["refused"]) for item in missing)
    counts: dict[str, Any] = {"wanted": len(items), "held": len(items) - len(missing), "recipe": recipe}
    if dry_run:
        return EditPlan(edit_run=edit_run, refused=refused, shards=Shards(shards=(), **counts))
    _announce(run, edit_run, recipe, bundle, variants, edit_ids)
    if not missing:
        run.reused(Table(store, dataset, "edits").ref(recipe))
    plans = write_plans(run, missing, settings().shard_rows)
    return EditPlan(edit_run=edit_run, refused=refused, shards=Shards(shards=plans, **counts))


@step("plan edit")
def plan_queue(run: StepRun, variants: tuple[Any, ...], config: Any) -> QueuePlan:
    """Like `plan_edit`, but an edit stays with the run that announced it first.

    What waits there, was approved or was rejected is not put before people a second time: in a run that held
    it again, `--approve all` would approve what somebody has rejected.
    """
    store, dataset = run.store, run.job.dataset
    bundle, recipe = _checked(run, variants, config)
    items = _wanted(run, variants, recipe, bundle)
    wanted = {item["row_key"] for item in items}
    held = Table(store, dataset, "edits").held(recipe)
    announced: dict[str, str] = {}
    bare: set[str] = set()
    for earlier in sorted(edit_runs(store), key=lambda one: (time_of(store, one), one.edit_run)):
        mine = earlier.dataset == dataset and earlier.document["recipe"] == recipe
        # a run that lacks edits which nobody wants any more can never be finished: it announces nothing
        if mine and all(key in held or key in wanted for key in earlier.edit_ids):
            for key in earlier.edit_ids:
                announced.setdefault(key, earlier.edit_run)
            if not store.exists(earlier.document["sheet"]):
                bare.add(earlier.edit_run)  # killed between its last row and its sheet
    new = sorted(wanted - announced.keys())
    new_run = _edit_run(dataset, recipe, new)
    missing = [
        {**item, "edit_run": announced.get(item["row_key"], new_run)}
        for item in items
        if item["row_key"] not in held
    ]
    if new:
        _announce(run, new_run, recipe, bundle, variants, new)
    if not missing:
        run.reused(Table(store, dataset, "edits").ref(recipe))
    touched = bare | {item["edit_run"] for item in missing} | ({new_run} if new else set())
    return QueuePlan(
        edit_runs=tuple(sorted(touched)),
        shards=Shards(
            shards=write_plans(run, missing, settings().shard_rows),
            wanted=len(items),
            held=len(items) - len(missing),
            recipe=recipe,
        ),
        refused=sum(bool(item["refused"]) for item in missing),
    )


def _wanted(run: StepRun, variants: tuple[Any, ...], recipe: str, bundle: Any) -> list[dict[str, Any]]:
    store, dataset = run.store, run.job.dataset
    table = Table(store, dataset, "latents")
    of_latents = recipes.invert(bundle).key
    latents = table.read(recipe=of_latents, columns=["row_key", "face_id"], statuses=["kept"])
    if latents.num_rows == 0:
        others = [r for r in table.recipes() if r != of_latents]
        if others:
            raise ContractError(
                "the latents of this dataset were made by another encoder than the promoted bundle's",
                expected=f"latents of encoder {str(bundle.encoder)[:12]}",
                found=f"{len(others)} other recipe(s)",
                todo=f"run `sdflow invert {dataset}` again, or `sdflow models rollback`",
            )
        raise ContractError(
            "there are no latents to edit", where=f"dataset {dataset}", todo=f"run `sdflow invert {dataset}`"
        )
    code_of = dict(zip(latents["face_id"].to_pylist(), latents["row_key"].to_pylist(), strict=True))
    points = Table(store, dataset, "faces").read(
        recipe=recipes.ingest(bundle).key, columns=["face_id", "points"], statuses=["kept"]
    )
    points_of = dict(zip(points["face_id"].to_pylist(), points["points"].to_pylist(), strict=True))
    sources = kept_sources(store, dataset, recipes.ingest(bundle).key)
    day = today()
    items: list[dict[str, Any]] = []
    for source in sources:
        code = code_of.get(source["face_id"], "")
        for variant in variants:
            request = variant.text()
            inputs = [code, source["source_id"], source["consent"], request]
            allowed = source["consent_attributes"]
            barred = [n for n in sorted(variant.targets) if "*" not in allowed and n not in allowed]
            refused = ended(source, day)
            if not refused and barred:
                refused = f"consent does not cover {', '.join(barred)}"
            if not refused and not code:
                refused = "its face has no latent: `sdflow invert` has not seen it, or could not encode it"
            items.append(
                {
                    "row_key": row_key(recipe, inputs),
                    "inputs": inputs,
                    "source_id": source["source_id"],
                    "image_id": source["image_id"],
                    "face_id": source["face_id"],
                    "points": points_of.get(source["face_id"], []),
                    "request": request,
                    "targets": variant.model_dump(mode="json")["targets"],
                    "refused": refused,
                }
            )
    return sorted(items, key=lambda item: item["row_key"])
