"""One shard of a planned edit run -> pictures, and rows waiting for a person or gated with a reason."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa

from sdflow_core.records.config import DatasetRef, PlanRef
from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import sha256_hex
from sdflow_core.records.tables import Table, wplus_numpy
from tasks import recipes
from tasks.plans import read_plan
from tasks.runtime import editor_of, networks_of, tick
from tasks.step import StepRun, step

# pictures in memory at a time; a multiple of the micro-batch, without influence on the result
CHUNK_ROWS = 64


_STRINGS = (
    "row_key",
    "recipe",
    "status",
    "reason",
    "edit_run",
    "source_id",
    "image_id",
    "face_id",
    "request",
    "before",
    "output",
    "pixel_sha256",
    "file_sha256",
)


_VECTORS = ("s_before", "s_after", "labels_before", "labels_after", "judge_before", "judge_after")


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _STRINGS),
        *((name, pa.list_(pa.float32())) for name in _VECTORS),
        ("inputs", pa.list_(pa.string())),
        ("attributes", pa.list_(pa.string())),
        ("strength", pa.float32()),
        ("identity", pa.float32()),
    ]
)


@step("edit")
def edit_shard(run: StepRun, plan: PlanRef, config: Any) -> DatasetRef:
    """Render one shard: pictures first, the rows that name them last."""
    import torch

    from sdflow_core.method.rendering import Variant, render_edits

    store, dataset = run.store, run.job.dataset
    networks = networks_of(store, run.job.bundle)
    bundle = networks.bundle
    recipe = run.using(recipes.edit(bundle, config))
    editor = editor_of(store, networks.digest("editor"))
    items = read_plan(store, plan)
    rows = [_row(recipe, item, bundle.attributes) for item in items if item["refused"]]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        if not item["refused"]:
            groups[item["request"]].append(item)
    table = Table(store, dataset, "latents").read(
        recipe=recipes.invert(bundle).key, columns=["row_key", "w_plus"], statuses=["kept"]
    )
    codes = wplus_numpy(table, "w_plus")
    editor.check(networks.digest("encoder"), (codes.shape[1], codes.shape[2]))
    place = {key: i for i, key in enumerate(table["row_key"].to_pylist())}
    for group in groups.values():
        for start in range(0, len(group), CHUNK_ROWS):
            part = group[start : start + CHUNK_ROWS]
            w = torch.from_numpy(codes[[place[item["inputs"][0]] for item in part]])
            points = np.array([item["points"] for item in part]).reshape(-1, 5, 2)
            done = render_edits(networks, editor, w, points, Variant(targets=part[0]["targets"]), config)
            rows += [_rendered(run, recipe, item, bundle.attributes, done, i) for i, item in enumerate(part)]
            tick("edit", len(rows), len(items))
    if len(rows) != len(items):
        raise ContractError("rows of an edit shard", expected=len(items), found=len(rows))
    return Table(store, dataset, "edits").commit(pa.Table.from_pylist(rows, _SCHEMA), run=run.run)


def _row(recipe: str, item: dict[str, Any], attributes: tuple[str, ...]) -> dict[str, Any]:
    same = {
        name: item[name]
        for name in ("row_key", "inputs", "edit_run", "source_id", "image_id", "face_id", "request")
    }
    empty = {"before": "", "output": "", "pixel_sha256": "", "file_sha256": ""}
    return {
        **same,
        **empty,
        "recipe": recipe,
        "attributes": list(attributes),
        "status": "dropped",
        "reason": item["refused"],
    }


def _rendered(
    run: StepRun, recipe: str, item: dict[str, Any], attributes: tuple[str, ...], done: Any, i: int
) -> dict[str, Any]:
    from sdflow_core.faces.pixels import pixel_digest, png_bytes

    key = item["row_key"]
    row = _row(recipe, item, attributes)
    if not bool(np.isfinite(done.w_plus[i].numpy()).all()):
        return {**row, "reason": "the edit gave numbers that are not finite"}
    output = f"private/edits/{key[:2]}/{key}.png"
    before = f"private/edits/{key[:2]}/{key}-before.png"
    data = png_bytes(done.after[i], None)
    run.store.create(before, png_bytes(done.before[i], None))
    run.store.create(output, data)
    return {
        **row,
        "status": "gated" if done.gate[i] else "waiting",
        "reason": done.gate[i],
        "before": before,
        "output": output,
        "pixel_sha256": pixel_digest(done.after[i]),
        "file_sha256": sha256_hex(data),
        "strength": float(done.strength[i]),
        "identity": float(done.identity[i]),
        **{name: getattr(done, name)[i].tolist() for name in _VECTORS},
    }
