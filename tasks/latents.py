"""Faces -> `latents` (W+ codes) and `labels` (scores): two tables, so that a re-label rewrites no latent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdflow_core.records.config import DatasetRef, PlanRef
from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import row_key
from sdflow_core.records.tables import BASE_COLUMNS, Table, wplus_column
from sdflow_core.streaming import Stage, Through, batched, flattened
from tasks import recipes
from tasks.consented import consented_column
from tasks.plans import Shards, read_plan, write_plans
from tasks.runtime import load_bundle, networks_of, settings
from tasks.step import StepRun, step
from tasks.streams import fetching, looking, modelling, shard_stream

_NAMES = [*(name for name in BASE_COLUMNS if name != "run"), "face_id"]
_AT_A_TIME = 8192  # faces whose keys are computed and looked up together


def _plan(run: StepRun, table_name: str, recipe: str) -> Shards:
    import pyarrow.compute as compute

    store, dataset = run.store, run.job.dataset
    table, faces = Table(store, dataset, table_name), Table(store, dataset, "faces")
    of_ingest = recipes.ingest(load_bundle(store, run.job.bundle)).key
    known = faces.read(recipe=of_ingest, columns=["row_key", "face_id"], statuses=["kept"])
    allowed = consented_column(store, dataset, of_ingest)
    mask: Any = cast(Any, compute).is_in(known.column("face_id"), value_set=allowed.combine_chunks())
    keys: Any = known.column("row_key").filter(mask)
    if not len(keys):
        raise ContractError(
            "there are no faces to work on",
            where=f"dataset {dataset}",
            expected="at least one kept face whose consent holds",
            found=f"{known.num_rows} faces, none of them with a consent that holds today",
            todo="run `sdflow ingest` for this dataset, with the bundle that is promoted now",
        )
    del known, allowed, mask
    missing = _lacking(table, recipe, keys)
    if not len(missing):
        run.reused(table.ref(recipe))
    shards = write_plans(run, _faces(faces, keys, missing), settings().shard_rows)
    return Shards(shards=shards, wanted=len(keys), held=len(keys) - len(missing), recipe=recipe)


def _lacking(table: Table, recipe: str, keys: Any) -> npt.NDArray[np.int64]:
    """Places of the faces that a table has no row of."""
    found: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(keys), _AT_A_TIME):
        part = cast("list[str]", keys.slice(start, _AT_A_TIME).to_pylist())
        held = table.holds([row_key(recipe, [key]) for key in part], recipe)
        found.append(np.flatnonzero(~held) + start)
    return np.concatenate(found)


def _faces(table: Table, keys: Any, places: npt.NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """The items of these faces, in this order; their rows are read as they are asked for."""
    columns = ["row_key", "face_id", "crop"]
    for start in range(0, len(places), 1000):
        part = keys.take(pa.array(places[start : start + 1000]))
        yield from table.read(columns=columns, row_keys=part).to_pylist()


@step("plan invert")
def plan_invert(run: StepRun) -> Shards:
    """Which faces under a consent that holds have no code yet."""
    return _plan(run, "latents", run.using(recipes.invert(load_bundle(run.store, run.job.bundle))))


@step("plan label")
def plan_label(run: StepRun) -> Shards:
    """Which faces under a consent that holds have no labels yet."""
    return _plan(run, "labels", run.using(recipes.label(load_bundle(run.store, run.job.bundle))))


def _crops_ahead(run: StepRun, batch_rows: int) -> list[Stage | Through]:
    """Stages that turn rows of faces into batches of crops, uint8 [H, W, 3], while the model works."""
    from sdflow_core.faces.pixels import read_png

    def fetch(row: dict[str, Any]) -> bytes:
        return run.store.read(row["crop"])

    return [fetching(fetch, ahead=batch_rows), looking("decode", read_png), batched(batch_rows)]


def _base_columns(rows: list[dict[str, Any]], recipe: str, reasons: list[str]) -> list[Any]:
    return [
        pa.array([row_key(recipe, [r["row_key"]]) for r in rows]),
        pa.array([recipe] * len(rows)),
        pa.array(["dropped" if reason else "kept" for reason in reasons]),
        pa.array(reasons),
        pa.array([[r["row_key"]] for r in rows], pa.list_(pa.string())),
        pa.array([r["face_id"] for r in rows]),
    ]


@step("invert")
def invert_shard(run: StepRun, plan: PlanRef) -> DatasetRef:
    """Encode one shard, and measure the reconstruction of every row."""
    import torch

    from sdflow_core.faces.networks import to_tensor
    from sdflow_core.method.evaluation import inversion_psnr

    recipe = run.using(recipes.invert(load_bundle(run.store, run.job.bundle)))
    networks = networks_of(run.store, run.job.bundle)
    rows = read_plan(run.store, plan)

    def encode(pictures: list[Any]) -> tuple[Any, Any, Any]:
        crops = np.stack(pictures)
        codes = networks.encode(crops)
        return crops, codes, networks.render(torch.from_numpy(codes))

    def measure(batch: tuple[Any, Any, Any]) -> Iterator[tuple[Any, float]]:
        crops, codes, rendered = batch
        # torch adds up a lone row in another order than one of several: a row must not depend on neighbours
        index = torch.arange(max(2, len(crops))).clamp_max(len(crops) - 1)
        psnr = inversion_psnr(to_tensor(crops)[index], rendered[index])[: len(crops)]
        return zip(codes, psnr.numpy().astype(np.float32), strict=True)

    stages = [
        *_crops_ahead(run, networks.micro_batch),
        modelling(encode),
        Stage("measure", measure),
        flattened(),
    ]
    with shard_stream(run, "invert", rows, stages, len(rows)) as results:
        done = list(results)
    codes, psnr = np.stack([code for code, _ in done]), np.array([value for _, value in done], np.float32)
    finite = np.all(np.isfinite(codes), axis=(1, 2))
    reasons = ["" if ok else "the encoder gave numbers that are not finite" for ok in finite]
    columns = [*_base_columns(rows, recipe, reasons), wplus_column(codes), pa.array(psnr)]
    names = [*_NAMES, "w_plus", "reconstruction_psnr_db"]
    return Table(run.store, run.job.dataset, "latents").commit(pa.table(columns, names=names), run=run.run)


@step("label")
def label_shard(run: StepRun, plan: PlanRef) -> DatasetRef:
    """Score one shard."""
    from sdflow_core.faces.networks import to_tensor

    recipe = run.using(recipes.label(load_bundle(run.store, run.job.bundle)))
    networks = networks_of(run.store, run.job.bundle)
    rows = read_plan(run.store, plan)

    def score(pictures: list[Any]) -> Any:
        return networks.scores(to_tensor(np.stack(pictures))).numpy()

    stages = [*_crops_ahead(run, networks.micro_batch), modelling(score), flattened()]
    with shard_stream(run, "label", rows, stages, len(rows)) as results:
        scores = np.stack(list(results))
    attributes = networks.bundle.attributes
    columns = [
        *_base_columns(rows, recipe, [""] * len(rows)),
        *(pa.array(scores[:, i]) for i in range(len(attributes))),
    ]
    names = [*_NAMES, *attributes]
    return Table(run.store, run.job.dataset, "labels").commit(pa.table(columns, names=names), run=run.run)
