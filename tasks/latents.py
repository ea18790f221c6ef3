"""Faces -> `latents` (W+ codes) and `labels` (scores): two tables, so that a re-label rewrites no latent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from sdflow_core.records.config import DatasetRef, PlanRef
from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import row_key
from sdflow_core.records.tables import BASE_COLUMNS, Table, wplus_column
from sdflow_core.streaming import Stage, Through, batched, flattened
from tasks import recipes
from tasks.consented import consented_faces
from tasks.plans import Shards, read_plan, write_plans
from tasks.runtime import load_bundle, networks_of, settings
from tasks.step import StepRun, step
from tasks.streams import fetching, looking, modelling, shard_stream

_NAMES = [*(name for name in BASE_COLUMNS if name != "run"), "face_id"]


def _plan(run: StepRun, table_name: str, recipe: str) -> Shards:
    store, dataset = run.store, run.job.dataset
    table = Table(store, dataset, table_name)
    of_ingest = recipes.ingest(load_bundle(store, run.job.bundle)).key
    allowed = consented_faces(store, dataset, of_ingest)
    known = Table(store, dataset, "faces").read(
        recipe=of_ingest, columns=["row_key", "face_id", "crop"], statuses=["kept"]
    )
    faces = [row for row in known.to_pylist() if row["face_id"] in allowed]
    if not faces:
        raise ContractError(
            "there are no faces to work on",
            where=f"dataset {dataset}",
            expected="at least one kept face whose consent holds",
            found=f"{known.num_rows} faces, none of them with a consent that holds today",
            todo="run `sdflow ingest` for this dataset, with the bundle that is promoted now",
        )
    held = table.held(recipe)
    missing = [row for row in faces if row_key(recipe, [row["row_key"]]) not in held]
    if not missing:
        run.reused(table.ref(recipe))
    shards = write_plans(run, missing, settings().shard_rows)
    return Shards(shards=shards, wanted=len(faces), held=len(faces) - len(missing), recipe=recipe)


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
