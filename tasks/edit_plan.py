"""Latents x requests -> what is left to render: consent and bundle are checked, nothing is rendered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from sdflow_core.records.announced import announced_runs, announced_time, spell_document, spell_list
from sdflow_core.records.config import Config
from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import canonical_json, sha256_hex
from sdflow_core.records.store import Store
from sdflow_core.records.tables import Table
from sdflow_core.weights.model_store import Bundle, edited_attributes
from tasks import recipes
from tasks.consented import today
from tasks.plans import Shards, write_plans
from tasks.runtime import load_bundle, settings
from tasks.step import StepRun, step
from tasks.wanted_edits import Wanted, wanted_edits


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
        ContractError: A target that is no score in [0, 1], no change of it and not `flip`; names the
            attribute and what was expected.
    """
    from pydantic import ValidationError

    from sdflow_core.method.request import Variant

    try:
        variants = tuple(Variant(targets=request) for request in requests)
    except ValidationError as error:
        what = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
        raise ContractError(
            "the request",
            found=what,
            expected="attribute=VALUE with VALUE in [0, 1], attribute=+CHANGE or -CHANGE, or attribute=flip",
        ) from None
    if not variants:
        raise ContractError(
            "nothing to edit", expected="at least one attribute", todo="pass --set smiling=0.9"
        )
    return variants


def edit_config(config: dict[str, Any] | None, bundle: Bundle | None = None) -> Any:
    """How requests are carried out, from plain values; the defaults when there are none.

    Args:
        config: What was asked for.
        bundle: Under which: one with large pictures has fewer of them in a call, unless asked otherwise.
    """
    from sdflow_core.faces.micro_batch import micro_batch_for
    from sdflow_core.method.request import EditConfig

    given = EditConfig.model_validate(config or {})
    if bundle is None or "micro_batch" in given.model_fields_set:
        return given
    fewer = min(given.micro_batch, micro_batch_for(bundle.resolution))
    return EditConfig.model_validate({**(config or {}), "micro_batch": fewer})


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
    known = edited_attributes(run.store, bundle)
    for variant in variants:
        check_variant(variant, known)
    return bundle, run.using(recipes.edit(bundle, config))


def _edit_run(dataset: str, recipe: str, ids: bytes) -> str:
    """Id of a run: the beginning of the hash of `[dataset, recipe, edit_ids]`."""
    return sha256_hex(canonical_json([dataset, recipe])[:-1] + b"," + ids + b"]")[:12]


def _announce(
    run: StepRun, edit_run: str, recipe: str, bundle: Any, variants: tuple[Any, ...], ids: bytes
) -> None:
    """Keep what an edit run is about, before its first picture."""
    document = {
        "edit_run": edit_run,
        "dataset": run.job.dataset,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": recipe,
        "requests": [v.model_dump(mode="json")["targets"] for v in variants],
        "bundle": run.job.bundle,
        "editor": bundle.editor,
        "attributes": list(bundle.attributes),
        "editor_attributes": list(edited_attributes(run.store, bundle)),
        "sheet": f"private/edit_runs/{edit_run}/sheet.png",
    }
    run.store.create(f"private/edit_runs/{edit_run}.json", spell_document(document, ids))


@step("plan edit")
def plan_edit(
    run: StepRun, variants: tuple[Any, ...], config: Any, dry_run: bool = False, quality: str = "fast"
) -> EditPlan:
    """Cross kept sources with variants, check consent, plan what the table lacks; dry runs write nothing."""
    store, dataset = run.store, run.job.dataset
    bundle, recipe = _checked(run, variants, config)
    wanted = wanted_edits(store, dataset, variants, recipe, bundle, today(), quality)
    ids = spell_list(wanted.keys)
    edit_run = _edit_run(dataset, recipe, ids)
    table = Table(store, dataset, "edits")
    missing = wanted.numbers(~table.holds(wanted.keys, recipe))
    counts: dict[str, Any] = {
        "wanted": len(wanted.keys),
        "held": len(wanted.keys) - len(missing),
        "recipe": recipe,
    }
    if dry_run:
        return EditPlan(
            edit_run=edit_run, refused=wanted.refused(missing), shards=Shards(shards=(), **counts)
        )
    _announce(run, edit_run, recipe, bundle, variants, ids)
    if not len(missing):
        run.reused(table.ref(recipe))
    items = ({**item, "edit_run": edit_run} for item in wanted.items(missing))
    counting = _Counting(items)
    plans = write_plans(run, counting, settings().shard_rows)
    return EditPlan(edit_run=edit_run, refused=counting.refused, shards=Shards(shards=plans, **counts))


@step("plan edit")
def plan_queue(run: StepRun, variants: tuple[Any, ...], config: Any) -> QueuePlan:
    """Like `plan_edit`, but an edit stays with the run that announced it first.

    What waits there, was approved or was rejected is not put before people a second time: in a run that held
    it again, `--approve all` would approve what somebody has rejected.
    """
    store, dataset = run.store, run.job.dataset
    bundle, recipe = _checked(run, variants, config)
    wanted = wanted_edits(store, dataset, variants, recipe, bundle, today())
    table = Table(store, dataset, "edits")
    lacking = ~table.holds(wanted.keys, recipe)
    runs, bare, by = _announced(store, dataset, recipe, table, wanted)
    is_new = by < 0
    ids = spell_list(wanted.keys.take(is_new))
    new_run = _edit_run(dataset, recipe, ids)
    if is_new.any():
        _announce(run, new_run, recipe, bundle, variants, ids)
    missing, run_of = wanted.numbers(lacking), [*runs, new_run]  # -1 is the last one: the new run
    by_number = np.empty(len(wanted.keys), np.int32)
    by_number[wanted.order] = by
    if not len(missing):
        run.reused(table.ref(recipe))
    announced = by_number[missing].tolist()
    items = (
        {**item, "edit_run": run_of[at]} for item, at in zip(wanted.items(missing), announced, strict=True)
    )
    counting = _Counting(items)
    plans = write_plans(run, counting, settings().shard_rows)
    touched = bare | {run_of[at] for at in set(announced)} | ({new_run} if is_new.any() else set[str]())
    return QueuePlan(
        edit_runs=tuple(sorted(touched)),
        shards=Shards(
            shards=plans, wanted=len(wanted.keys), held=len(wanted.keys) - len(missing), recipe=recipe
        ),
        refused=counting.refused,
    )


def _announced(
    store: Store, dataset: str, recipe: str, table: Table, wanted: Wanted
) -> tuple[list[str], set[str], npt.NDArray[np.int32]]:
    """Runs that announced wanted edits; those that lack their sheet; and by key the first run, -1: none."""
    earlier = [
        (announced_time(store, one), one.edit_run, one)
        for one in announced_runs(store)
        if one.document["dataset"] == dataset and one.document["recipe"] == recipe
    ]
    by = np.full(len(wanted.keys), -1, np.int32)
    runs: list[str] = []
    bare: set[str] = set()
    for _, edit_run, one in sorted(earlier, key=lambda item: item[:2]):
        place = wanted.find(one.keys)
        # a run that lacks edits which nobody wants any more can never be finished: it announces nothing
        if not table.holds(one.keys.take(place < 0), recipe).all():
            continue
        mine = place[place >= 0]
        by[mine[by[mine] < 0]] = len(runs)
        runs.append(edit_run)
        if not store.exists(one.document["sheet"]):
            bare.add(edit_run)  # killed between its last row and its sheet
    return runs, bare, by


class _Counting:
    """Items as they pass, and how many of them are refused."""

    def __init__(self, items: Iterable[dict[str, Any]]) -> None:
        self._items = items
        self.refused = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for item in self._items:
            self.refused += bool(item["refused"])
            yield item
