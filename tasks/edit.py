"""One shard of a planned edit run -> pictures, and rows waiting for a person or gated with a reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from sdflow_core.records.config import DatasetRef, PlanRef
from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import sha256_hex
from sdflow_core.records.picking import pick_rows
from sdflow_core.records.tables import Table, wplus_numpy
from sdflow_core.streaming import Stage, Through, flattened
from tasks import recipes
from tasks.plans import read_plan
from tasks.runtime import editor_of, networks_of
from tasks.step import StepRun, step
from tasks.streams import keeping, looking, modelling, shard_stream

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
    chunks = [
        group[start : start + CHUNK_ROWS]
        for group in groups.values()
        for start in range(0, len(group), CHUNK_ROWS)
    ]
    if chunks:
        codes = _codes(run, [item["inputs"][0] for chunk in chunks for item in chunk])
        editor.check(networks.digest("encoder"), (codes.shape[1], codes.shape[2]))
        rendered = _Rendering(run, recipe, networks, editor, config)
        before = len(rows)
        with shard_stream(
            run, "edit", rendered.sources(chunks, codes), rendered.stages(), len(items), before=before
        ) as results:
            rows += results
    if len(rows) != len(items):
        raise ContractError("rows of an edit shard", expected=len(items), found=len(rows))
    return Table(store, dataset, "edits").commit(pa.Table.from_pylist(rows, _SCHEMA), run=run.run)


def _codes(run: StepRun, keys: list[str]) -> Any:
    """Codes of these latents [N, L, D], and of no others."""
    table = Table(run.store, run.job.dataset, "latents")
    return wplus_numpy(pick_rows(table, keys, ["w_plus"]), "w_plus")


class _Rendering:
    """What the stages of an edit shard do."""

    def __init__(self, run: StepRun, recipe: str, networks: Any, editor: Any, config: Any) -> None:
        self.run, self.recipe, self.networks, self.editor, self.config = run, recipe, networks, editor, config

    def sources(self, chunks: list[list[dict[str, Any]]], codes: Any) -> Iterator[tuple[Any, Any]]:
        """Items of one request, with their codes."""
        start = 0
        for chunk in chunks:
            yield chunk, codes[start : start + len(chunk)]
            start += len(chunk)

    def stages(self) -> list[Stage | Through]:
        """The device draws; identity, gates and files are made beside it, edit by edit."""
        return [
            modelling(self.draw),
            flattened(),
            looking("encode", self.judge),
            keeping(self.keep),
        ]

    def draw(self, chunk: tuple[Any, Any]) -> list[tuple[dict[str, Any], Any, int]]:
        """A chunk of edits of one request."""
        import torch

        from sdflow_core.method.rendering import Variant, draw_edits

        items, codes = chunk
        variant = Variant(targets=items[0]["targets"])
        drawn = draw_edits(self.networks, self.editor, torch.from_numpy(codes), variant, self.config)
        return [(item, drawn, i) for i, item in enumerate(items)]

    def judge(self, edit: tuple[dict[str, Any], Any, int]) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Row and files of one edit."""
        from sdflow_core.faces.pixels import pixel_digest, png_bytes
        from sdflow_core.method.rendering import gate, identities

        item, drawn, i = edit
        key = item["row_key"]
        row = _row(self.recipe, item, self.networks.bundle.attributes)
        if not bool(np.isfinite(drawn.w_plus[i].numpy()).all()):
            return {**row, "reason": "the edit gave numbers that are not finite"}, {}
        output = f"private/edits/{key[:2]}/{key}.png"
        before = f"private/edits/{key[:2]}/{key}-before.png"
        points = np.array(item["points"]).reshape(1, 5, 2)
        one = slice(i, i + 1)
        identity = float(identities(self.networks, drawn.before[one], drawn.after[one], points)[0])
        held = gate(bool(drawn.reached[i]), identity, float(drawn.drift[i]), self.config)
        data = png_bytes(drawn.after[i], None)
        row |= {
            "status": "gated" if held else "waiting",
            "reason": held,
            "before": before,
            "output": output,
            "pixel_sha256": pixel_digest(drawn.after[i]),
            "file_sha256": sha256_hex(data),
            "strength": float(drawn.strength[i]),
            "identity": identity,
            **{name: getattr(drawn, name)[i].tolist() for name in _VECTORS},
        }
        return row, {before: png_bytes(drawn.before[i], None), output: data}

    def keep(self, edit: tuple[dict[str, Any], dict[str, bytes]]) -> dict[str, Any]:
        """Files first: the row is not committed before all of them lie there."""
        row, files = edit
        for key, data in files.items():
            if not self.run.store.create(key, data) and key == row["output"]:
                # left by a run that was killed, perhaps with another codec: the row is about that file
                row["file_sha256"] = sha256_hex(self.run.store.read(key))
        return row


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
