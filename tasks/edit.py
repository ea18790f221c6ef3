"""One shard of a planned edit run -> pictures, and rows waiting for a person or gated with a reason."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from sdflow_core.records.config import DatasetRef, PlanRef
from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import row_key, sha256_hex
from sdflow_core.records.picking import pick_rows
from sdflow_core.records.tables import Table, wplus_numpy
from sdflow_core.streaming import Stage, Through, flattened
from tasks import recipes
from tasks.latents import read_crop
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
        *((name, pa.list_(pa.float32())) for name in (*_VECTORS, "s_asked")),
        ("inputs", pa.list_(pa.string())),
        ("attributes", pa.list_(pa.string())),
        ("strength", pa.float32()),
        ("tries", pa.int32()),
        ("capped", pa.bool_()),
        ("other_change", pa.float32()),
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
    wanted = [item for item in items if not item["refused"]]
    if wanted:
        latents = _Latents(run, wanted)
        editor.check(networks.digest("encoder"), latents.shape)
        rendered = _Rendering(run, recipe, networks, editor, config, latents)
        # a plan's neighbours are edits of one code: what they share is computed once a chunk
        chunks = (wanted[start : start + CHUNK_ROWS] for start in range(0, len(wanted), CHUNK_ROWS))
        before = len(rows)
        stages = rendered.stages()
        with shard_stream(run, "edit", chunks, stages, len(items), before=before) as results:
            rows += results
    if len(rows) != len(items):
        raise ContractError("rows of an edit shard", expected=len(items), found=len(rows))
    return Table(store, dataset, "edits").commit(pa.Table.from_pylist(rows, _SCHEMA), run=run.run)


class _Latents:
    """Codes of a shard's items, and of no others."""

    def __init__(self, run: StepRun, items: list[dict[str, Any]]) -> None:
        keys = list(dict.fromkeys(item["inputs"][0] for item in items))
        columns = ["w_plus", "reconstruction_psnr_db"]
        found = pick_rows(Table(run.store, run.job.dataset, "latents"), keys, columns)
        self._place = {key: place for place, key in enumerate(keys)}
        self._codes = wplus_numpy(found, "w_plus")
        self._psnr = np.asarray(found["reconstruction_psnr_db"].to_numpy(), np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, D)."""
        return self._codes.shape[1], self._codes.shape[2]

    def of(self, keys: list[str]) -> tuple[Any, Any]:
        """Codes [N, L, D] and dB of their reconstructions [N]."""
        places = [self._place[key] for key in keys]
        return self._codes[places], self._psnr[places]


class _Chunk:
    """Edits that are drawn together, and the codes that they are about."""

    def __init__(self, items: list[dict[str, Any]], latents: _Latents) -> None:
        self.items = items
        first: dict[str, dict[str, Any]] = {}
        for item in items:
            first.setdefault(item["inputs"][0], item)
        self.faces = list(first.values())
        place = {key: number for number, key in enumerate(first)}
        self.rows = [place[item["inputs"][0]] for item in items]
        self.codes, self.psnr = latents.of(list(first))
        self.points = np.array([item["points"] for item in items], np.float64).reshape(-1, 5, 2)
        self.lost: dict[str, str] = {}  # face -> why its crop cannot be had
        self.begun: Any = None
        self.drawn: Any = None


class _Rendering:
    """What the stages of an edit shard do."""

    def __init__(
        self, run: StepRun, recipe: str, networks: Any, editor: Any, config: Any, latents: _Latents
    ) -> None:
        self.run, self.recipe, self.networks, self.editor, self.config = run, recipe, networks, editor, config
        self.latents, self._device = latents, threading.Lock()

    def stages(self) -> list[Stage | Through]:
        """The device draws; identity, gates and files are made beside it, edit by edit.

        What a gate holds back goes to the device once more, chunk by chunk as it was drawn.
        """
        return [
            modelling(self.draw),
            flattened(),
            looking("identity", self.recognise),
            Through("gather", self.gather),
            Stage("again", self.draw_again),
            flattened(name="rows again"),
            looking("encode", self.judge),
            keeping(self.keep),
        ]

    def draw(self, items: list[dict[str, Any]]) -> list[tuple[_Chunk, int]]:
        """A chunk of edits."""
        import torch

        from sdflow_core.method.rendering import Variant, begin, draw_edits

        chunk = _Chunk(items, self.latents)
        crops = self._crops(chunk) if self.config.carry_residual else None
        variants = {item["request"]: Variant(targets=item["targets"]) for item in items}
        asked = [variants[item["request"]] for item in items]
        with self._device:
            codes = torch.from_numpy(chunk.codes)
            chunk.begun = begin(self.networks, self.editor, codes, self.config, crops)
            rows = torch.tensor(chunk.rows)
            chunk.drawn = draw_edits(self.networks, self.editor, chunk.begun, asked, rows, self.config)
        return [(chunk, i) for i in range(len(items))]

    def _crops(self, chunk: _Chunk) -> Any:
        """Crops of the chunk's faces [N, H, W, 3], black where one cannot be had."""
        size = self.networks.bundle.resolution
        of_ingest = recipes.ingest(self.networks.bundle).key
        keys = [row_key(of_ingest, [face["face_id"]]) for face in chunk.faces]
        rows = Table(self.run.store, self.run.job.dataset, "faces").read(
            columns=["face_id", "crop", "crop_sha256"], statuses=["kept"], row_keys=sorted(set(keys))
        )
        known = {row["face_id"]: row for row in rows.to_pylist()}
        out = np.zeros((len(chunk.faces), size, size, 3), np.uint8)
        for place, face in enumerate(chunk.faces):
            picture, why = read_crop(self.run.store, known.get(face["face_id"]), (size, size, 3))
            if picture is None:
                chunk.lost[face["inputs"][0]] = why
            else:
                out[place] = picture
        return out

    def recognise(self, edit: tuple[_Chunk, int]) -> tuple[_Chunk, float]:
        """Identity of one edit."""
        from sdflow_core.method.rendering import identities

        chunk, i = edit
        one, drawn = slice(i, i + 1), chunk.drawn
        return chunk, float(
            identities(self.networks, drawn.before[one], drawn.after[one], chunk.points[one])[0]
        )

    def gather(self, edits: Iterator[tuple[_Chunk, float]]) -> Iterator[tuple[_Chunk, Any]]:
        """Chunks as they were drawn, with the identities of their edits."""
        for _, group in groupby(edits, key=lambda edit: id(edit[0])):
            members = list(group)
            yield members[0][0], np.array([identity for _, identity in members], np.float32)

    def draw_again(self, found: tuple[_Chunk, Any]) -> list[tuple[_Chunk, int, float]]:
        """Less strength for what identity or the change of others holds back."""
        from sdflow_core.method.rendering import draw_again

        chunk, identity = found
        with self._device:
            chunk.drawn, identity = draw_again(
                self.networks, self.editor, chunk.begun, chunk.drawn, identity, chunk.points, self.config
            )
        return [(chunk, i, float(value)) for i, value in enumerate(identity)]

    def judge(self, edit: tuple[_Chunk, int, float]) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Row and files of one edit."""
        from sdflow_core.faces.pixels import pixel_digest, png_bytes
        from sdflow_core.method.condition import attributes_of
        from sdflow_core.method.rendering import gate

        chunk, i, identity = edit
        item, drawn = chunk.items[i], chunk.drawn
        key = item["row_key"]
        row = _row(self.recipe, item, self.networks.bundle.attributes)
        if why := chunk.lost.get(item["inputs"][0]):
            return {**row, "status": "failed", "reason": why}, {}
        if drawn.lost[i]:
            return {**row, "reason": drawn.lost[i]}, {}
        output = f"private/edits/{key[:2]}/{key}.png"
        before = f"private/edits/{key[:2]}/{key}-before.png"
        held = gate(drawn, i, identity, float(chunk.psnr[chunk.rows[i]]), self.config)
        data = png_bytes(drawn.after[i], None)
        row |= {
            "status": "gated" if held else "waiting",
            "reason": held,
            "before": before,
            "output": output,
            "pixel_sha256": pixel_digest(drawn.after[i]),
            "file_sha256": sha256_hex(data),
            "strength": float(drawn.strength[i]),
            "tries": int(drawn.tries[i]),
            "capped": bool(drawn.capped[i]),
            "other_change": float(drawn.drift[i]),
            "identity": identity,
            "s_asked": attributes_of(drawn.phi[i]).tolist(),
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
