"""Faces -> `latents` (W+ codes) and `labels` (scores): two tables, so that a re-label rewrites no latent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdflow_core.records.config import DatasetRef, PlanRef
from sdflow_core.records.errors import ContractError, CorruptError, NotFoundError
from sdflow_core.records.keys import row_key
from sdflow_core.records.store import Store
from sdflow_core.records.tables import BASE_COLUMNS, Table, wplus_column
from sdflow_core.streaming import Stage, Through, batched, flattened
from tasks import recipes
from tasks.consented import consented_column
from tasks.plans import Shards, read_plan, write_plans
from tasks.runtime import load_bundle, networks_of, settings
from tasks.step import StepRun, step
from tasks.streams import fetching, looking, modelling, shard_stream

_NAMES = [*(name for name in BASE_COLUMNS if name != "run"), "face_id"]
LOST_CROP = "the crop of this face is not in the store any more"
CHANGED_CROP = "the crop of this face is not the one that was recorded"
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
    columns = ["row_key", "face_id", "crop", "crop_sha256"]
    for start in range(0, len(places), 1000):
        part = keys.take(pa.array(places[start : start + 1000]))
        yield from table.read(columns=columns, row_keys=part).to_pylist()


@step("plan invert")
def plan_invert(run: StepRun, quality: str = "fast") -> Shards:
    """Which faces under a consent that holds have no code of this quality yet."""
    return _plan(run, "latents", run.using(recipes.invert(load_bundle(run.store, run.job.bundle), quality)))


@step("plan label")
def plan_label(run: StepRun) -> Shards:
    """Which faces under a consent that holds have no labels yet."""
    return _plan(run, "labels", run.using(recipes.label(load_bundle(run.store, run.job.bundle))))


class _Crops:
    """Rows of faces as batches of crops, uint8 [H, W, 3], while the model works.

    A crop that is missing, or is not the one that was recorded, costs its row and no other: the model gets a
    black picture in its place, and `lost` says why, by the row's place.
    """

    def __init__(self, run: StepRun, resolution: int) -> None:
        self.run, self.blank = run, np.zeros((resolution, resolution, 3), np.uint8)
        self.lost: dict[int, str] = {}

    def stages(self, batch_rows: int) -> list[Stage | Through]:
        """From (place, row) to batches."""
        return [fetching(self.fetch, ahead=batch_rows), looking("decode", self.decode), batched(batch_rows)]

    def fetch(self, item: tuple[int, dict[str, Any]]) -> tuple[int, dict[str, Any], bytes]:
        """The file of the crop; empty where there is none."""
        place, row = item
        try:
            return place, row, self.run.store.read(row["crop"])
        except NotFoundError:
            return place, row, b""

    def decode(self, item: tuple[int, dict[str, Any], bytes]) -> Any:
        """The pixels, if they are those that were recorded."""
        place, row, data = item
        picture, why = checked_crop(row, data)
        if picture is None:
            self.lost[place] = why
            return self.blank
        return picture


def checked_crop(row: dict[str, Any], data: bytes) -> tuple[Any, str]:
    """The pixels of a file that are those which a row of `faces` recorded; or None, and why not."""
    from sdflow_core.faces.pixels import pixel_digest, read_png

    if not data:
        return None, LOST_CROP
    try:
        picture = read_png(data)
    except (ContractError, CorruptError):
        return None, CHANGED_CROP
    return (picture, "") if pixel_digest(picture) == row["crop_sha256"] else (None, CHANGED_CROP)


def read_crop(store: Store, row: dict[str, Any] | None, shape: tuple[int, int, int]) -> tuple[Any, str]:
    """The crop of a row of `faces`, of this shape; or None, and why not."""
    try:
        data = store.read(row["crop"]) if row is not None else b""
    except NotFoundError:
        data = b""
    picture, why = checked_crop(row or {}, data)
    return (None, CHANGED_CROP) if picture is not None and picture.shape != shape else (picture, why)


def _base_columns(
    rows: list[dict[str, Any]], recipe: str, reasons: list[str], lost: dict[int, str]
) -> list[Any]:
    """`reasons` drop a row for good; `lost` may be found again, so that the next run tries anew."""
    statuses = ["dropped" if reason else "kept" for reason in reasons]
    reasons = list(reasons)
    for place, why in lost.items():
        statuses[place], reasons[place] = "failed", why
    return [
        pa.array([row_key(recipe, [r["row_key"]]) for r in rows]),
        pa.array([recipe] * len(rows)),
        pa.array(statuses),
        pa.array(reasons),
        pa.array([[r["row_key"]] for r in rows], pa.list_(pa.string())),
        pa.array([r["face_id"] for r in rows]),
    ]


# beside the columns of every latent; `refinement_step` gave the code, 0: the encoder's was kept
_REFINEMENT = {
    "encoder_psnr_db": pa.float32(),
    "refinement_steps": pa.int32(),
    "refinement_step": pa.int32(),
    "refinement_moved": pa.float32(),
    "refinement_note": pa.string(),
}


def _refinement_rows(found: Any, steps: int) -> list[tuple[Any, ...]]:
    """Of each row what `_REFINEMENT` names."""
    return [
        (float(psnr), steps, int(at), float(moved), why)
        for psnr, at, moved, why in zip(
            found.psnr_before, found.step, found.moved, found.reasons, strict=True
        )
    ]


@step("invert")
def invert_shard(run: StepRun, plan: PlanRef, quality: str = "fast") -> DatasetRef:
    """Encode one shard, refine its codes if asked, and measure the reconstruction of every row."""
    import torch

    from sdflow_core.faces.networks import to_tensor
    from sdflow_core.method.evaluation import inversion_psnr

    bundle = load_bundle(run.store, run.job.bundle)
    recipe = run.using(recipes.invert(bundle, quality))
    networks = networks_of(run.store, run.job.bundle)
    rows = read_plan(run.store, plan)
    crops = _Crops(run, networks.bundle.resolution)
    config = recipes.refinement(bundle, quality)
    steps = 0 if config is None else config.steps
    took: dict[str, float] = {"encode_seconds": 0.0, "render_seconds": 0.0, "refine_seconds": 0.0}

    def timed(what: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            return call()
        finally:
            took[what] += time.perf_counter() - started

    def encode(pictures: list[Any]) -> tuple[Any, Any, Any, Any]:
        batch = np.stack(pictures)
        codes = timed("encode_seconds", lambda: networks.encode(batch))
        found: Any = None
        if config is not None:
            asked, given = config, torch.from_numpy(codes)
            found = timed("refine_seconds", lambda: networks.refine(to_tensor(batch), given, asked))
            codes = found.w_plus.numpy()
        rendered = timed("render_seconds", lambda: networks.render(torch.from_numpy(codes)))
        return batch, codes, rendered, found

    def measure(batch: tuple[Any, Any, Any, Any]) -> Iterator[tuple[Any, float, tuple[Any, ...]]]:
        shown, codes, rendered, found = batch
        # torch adds up a lone row in another order than one of several: a row must not depend on neighbours
        index = torch.arange(max(2, len(shown))).clamp_max(len(shown) - 1)
        psnr = inversion_psnr(to_tensor(shown)[index], rendered[index])[: len(shown)]
        of_rows = [()] * len(codes) if found is None else _refinement_rows(found, steps)
        return zip(codes, psnr.numpy().astype(np.float32), of_rows, strict=True)

    stages = [
        *crops.stages(networks.micro_batch),
        modelling(encode),
        Stage("measure", measure),
        flattened(),
    ]
    with shard_stream(run, "invert", enumerate(rows), stages, len(rows)) as results:
        done = list(results)
    run.facts["figures"] |= {**took, "rows": len(rows), "steps": steps}
    codes = np.stack([code for code, _, _ in done])
    psnr = np.array([value for _, value, _ in done], np.float32)
    finite = np.all(np.isfinite(codes), axis=(1, 2))
    reasons = ["" if ok else "the encoder gave numbers that are not finite" for ok in finite]
    columns = [*_base_columns(rows, recipe, reasons, crops.lost), wplus_column(codes), pa.array(psnr)]
    names = [*_NAMES, "w_plus", "reconstruction_psnr_db"]
    if config is not None:  # rows of the encoder alone stay as they always were
        values = zip(*(row for _, _, row in done), strict=True)
        columns += [pa.array(of, kind) for of, kind in zip(values, _REFINEMENT.values(), strict=True)]
        names += _REFINEMENT
    return Table(run.store, run.job.dataset, "latents").commit(pa.table(columns, names=names), run=run.run)


@step("label")
def label_shard(run: StepRun, plan: PlanRef) -> DatasetRef:
    """Score one shard."""
    from sdflow_core.faces.networks import to_tensor

    recipe = run.using(recipes.label(load_bundle(run.store, run.job.bundle)))
    networks = networks_of(run.store, run.job.bundle)
    rows = read_plan(run.store, plan)
    crops = _Crops(run, networks.bundle.resolution)

    def score(pictures: list[Any]) -> Any:
        return networks.scores(to_tensor(np.stack(pictures))).numpy()

    stages = [*crops.stages(networks.micro_batch), modelling(score), flattened()]
    with shard_stream(run, "label", enumerate(rows), stages, len(rows)) as results:
        scores = np.stack(list(results))
    attributes = networks.bundle.attributes
    columns = [
        *_base_columns(rows, recipe, [""] * len(rows), crops.lost),
        *(pa.array(scores[:, i]) for i in range(len(attributes))),
    ]
    names = [*_NAMES, *attributes]
    return Table(run.store, run.job.dataset, "labels").commit(pa.table(columns, names=names), run=run.run)
