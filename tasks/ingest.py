"""Sources -> rows of `sources` and `faces`. Every source ends as a row; originals are only read.

A file is one row of `sources`. Where every face of a picture is taken, `faces` has a row for each that was
found, and those that cannot be used are there as `dropped` with the reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from sdflow_core.records.config import DatasetRef, PlanRef
from sdflow_core.records.errors import AccessError, ContractError, SDFlowError, UnavailableError
from sdflow_core.records.keys import row_key, sha256_hex
from sdflow_core.records.sources import SourceItem
from sdflow_core.records.store import open_source
from sdflow_core.records.tables import Table, base_schema
from sdflow_core.streaming import Stage
from tasks import recipes
from tasks.ingest_plan import current_verdicts
from tasks.plans import read_plan
from tasks.runtime import networks_of
from tasks.step import StepRun, step
from tasks.streams import fetching, keeping, looking, shard_stream

# Files that are read and not decoded yet take no more memory than this; a larger one is read alone.
_BYTES_AHEAD = 64 * 2**20
# Pictures that are decoded side by side have no more pixels than this, and a larger one is decoded alone: a
# hostile folder takes the memory of one such picture, however many cores there are.
_PIXELS_AT_A_TIME = 25_000_000
_BASE = [field for field in base_schema() if field.name != "run"]  # `Table` adds the run


_SOURCES = pa.schema(
    [
        *_BASE,
        ("source_id", pa.string()),
        ("name", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("image_id", pa.string()),
        ("face_id", pa.string()),
        ("subject", pa.string()),
        ("consent", pa.string()),
        ("consent_attributes", pa.list_(pa.string())),
        ("consent_expires", pa.string()),
    ]
)


_FACES = pa.schema(
    [
        *_BASE,
        ("face_id", pa.string()),
        ("image_id", pa.string()),
        ("quad", pa.list_(pa.float64())),
        ("points", pa.list_(pa.float64())),
        ("crop", pa.string()),
        ("crop_sha256", pa.string()),
        ("score", pa.float64()),
    ]
)


@step("ingest")
def ingest_shard(run: StepRun, plan: PlanRef) -> DatasetRef:
    """Read, decode, detect, align one shard; faces are committed before the sources that point at them."""
    store, dataset = run.store, run.job.dataset
    networks = networks_of(store, run.job.bundle)
    recipe = run.using(recipes.ingest(networks.bundle))
    items = read_plan(store, plan)
    table = Table(store, dataset, "sources")
    current = current_verdicts(table, recipe, [item["uri"] for item in items])
    looking_at = _Looking(run, recipe, networks, current, {item["source"] for item in items})
    judged: list[dict[str, Any]] = []
    faces: dict[str, dict[str, Any]] = {}
    with shard_stream(run, "ingest", items, looking_at.stages(), len(items), model="judge") as results:
        for row, shown in results:
            judged.append(row)
            for face in shown:
                faces.setdefault(face["row_key"], face)
    held = table.held_among([row["row_key"] for row in judged], recipe)
    sources: dict[str, dict[str, Any]] = {}
    for row in judged:
        now = current.get(row["uri"])
        if now is not None and row["row_key"] in held and _other(now, row):
            # A consent or a version that was in force before and is again: the old row cannot become the
            # latest once more, so the verdict gets a row of its own. Likewise for the same bytes with another
            # time, which would else be read again every night.
            row["inputs"] = [*row["inputs"], now["row_key"]]
            row["row_key"] = row_key(recipe, row["inputs"])
        sources[row["row_key"]] = row
    if len(sources) != len(items):
        raise ContractError("a source was listed twice", expected=f"{len(items)} rows", found=len(sources))
    if faces:
        Table(store, dataset, "faces").commit(pa.Table.from_pylist(list(faces.values()), _FACES), run=run.run)
    return Table(store, dataset, "sources").commit(
        pa.Table.from_pylist(list(sources.values()), _SOURCES), run=run.run
    )


def _other(now: dict[str, Any], row: dict[str, Any]) -> bool:
    return any(now[name] != row[name] for name in ("row_key", "size_bytes", "mtime_ns"))


def _source_id(uri: str, version: str) -> str:
    return sha256_hex(f"{uri}\n{version}".encode())


class _Looking:
    """What the stages of an ingest shard do; every method is called by several threads."""

    def __init__(
        self, run: StepRun, recipe: str, networks: Any, current: dict[str, dict[str, Any]], sources: set[str]
    ) -> None:
        self.store, self.recipe, self.networks, self.current = run.store, recipe, networks, current
        self.config = recipes.ingest_config(networks.bundle)
        self.folders = {source: open_source(source, run.store) for source in sources}

    def stages(self) -> list[Stage]:
        """Files are read ahead, up to a number and a sum of bytes; crops are written behind."""
        return [
            fetching(self.fetch, ahead=32, weigh=_bytes_to_read, most=_BYTES_AHEAD),
            looking("judge", self.judge, weigh=_pixels_to_decode, most=_PIXELS_AT_A_TIME),
            keeping(self.keep),
        ]

    def fetch(self, item: dict[str, Any]) -> tuple[dict[str, Any], bytes | SDFlowError | None]:
        """The item, and its bytes or why there are none; None where its verdict is known without them."""
        if _is_known(item):
            return item, None
        listed = SourceItem(
            item["name"], item["uri"], item["size_bytes"], item["mtime_ns"], item["etag"], item["path"]
        )
        try:
            return item, self.folders[item["source"]].read(listed)
        except (AccessError, UnavailableError):
            raise  # no matter of this file: the shard is tried again, or the story ends with one message
        except SDFlowError as error:
            return item, error

    def judge(
        self, read: tuple[dict[str, Any], bytes | SDFlowError | None]
    ) -> tuple[dict[str, Any], list[tuple[dict[str, Any], bytes]]]:
        """Row of one source, and of its faces with the files of their crops when they were found just now."""
        item, data = read
        verdict, face_id = self._verdict(item, data)
        row = _source_row(self.recipe, item, verdict, face_id)
        return row, [_face_row(self.recipe, verdict.image_id, face) for face in verdict.faces]

    def keep(
        self, judged: tuple[dict[str, Any], list[tuple[dict[str, Any], bytes]]]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Crops lie in the store before the rows that name them are committed."""
        row, faces = judged
        for face, crop in faces:
            if face["crop"]:
                self.store.create(face["crop"], crop)
        return row, [face for face, _ in faces]

    def _verdict(self, item: dict[str, Any], data: bytes | SDFlowError | None) -> tuple[Any, str]:
        """Verdict of one source, and its largest face that fits; what was judged is not decoded again."""
        from sdflow_core.faces.ingestion import Verdict, judge_source

        known = item["known"]
        if data is None and item["why"]:
            return Verdict("dropped", item["why"], known["image_id"]), ""
        if data is None:
            return Verdict(known["status"], known["reason"], known["image_id"]), known["face_id"]
        if isinstance(data, SDFlowError):
            return judge_source(_raising(data), self._find, self.config), ""
        image_id, now = sha256_hex(data), self.current.get(item["uri"])
        judged = (
            now is not None and now["image_id"] == image_id and now["consent"] and now["status"] != "failed"
        )
        if now is not None and judged and not item["why"]:
            # another time in the folder's listing, the same bytes: nothing to look at again
            return Verdict(now["status"], now["reason"], image_id), now["face_id"]
        verdict = judge_source(lambda: data, self._find, self.config, item["why"])
        fit = [face.number for face in verdict.faces if face.aligned is not None]
        return verdict, f"{verdict.image_id}#{fit[0]}" if fit else ""

    def _find(self, picture: Any) -> Any:
        from sdflow_core.faces.networks import count_call

        count_call(self.networks.calls, "detector")
        return self.networks.detector.find(picture)


def _is_known(item: dict[str, Any]) -> bool:
    """Whether the verdict follows from the records: these very bytes were judged, or are refused."""
    return item["known"] is not None and bool(item["why"] or item["known"]["judged"])


def _bytes_to_read(item: dict[str, Any]) -> int:
    return 0 if _is_known(item) else int(item["size_bytes"] or 0)


def _pixels_to_decode(read: tuple[dict[str, Any], bytes | SDFlowError | None]) -> int:
    from sdflow_core.faces.decode import header_pixels

    item, data = read
    return header_pixels(data) if isinstance(data, bytes) and not item["why"] else 0


def _raising(error: SDFlowError) -> Any:
    def read() -> bytes:
        raise error

    return read


def _source_row(recipe: str, item: dict[str, Any], verdict: Any, face_id: str) -> dict[str, Any]:
    known = (item["known"] or {}).get("version")
    unread = f"unread-{item['size_bytes']}-{item['mtime_ns']}"
    version = item["etag"] or known or verdict.image_id or unread
    source_id = _source_id(item["uri"], version)
    inputs = [source_id, item["consent"]]
    return {
        "row_key": row_key(recipe, inputs),
        "recipe": recipe,
        "status": verdict.status,
        "reason": verdict.reason,
        "inputs": inputs,
        "source_id": source_id,
        "name": item["name"],
        "uri": item["uri"],
        "version": version,
        "size_bytes": item["size_bytes"],
        "mtime_ns": item["mtime_ns"] or 0,
        "image_id": verdict.image_id,
        "face_id": face_id,
        "subject": item["subject"],
        "consent": item["consent"],
        "consent_attributes": item["attributes"],
        "consent_expires": item["expires"],
    }


def _face_row(recipe: str, image_id: str, judged: Any) -> tuple[dict[str, Any], bytes]:
    """Row of a face, and the file of its crop; of one that cannot be used there is none."""
    from sdflow_core.faces.pixels import pixel_digest, png_bytes

    face, face_id = judged.aligned, f"{image_id}#{judged.number}"
    row: dict[str, Any] = {
        "row_key": row_key(recipe, [face_id]),
        "recipe": recipe,
        "status": "dropped" if judged.reason else "kept",
        "reason": judged.reason,
        "inputs": [face_id],
        "face_id": face_id,
        "image_id": image_id,
        "quad": [],
        "points": [],
        "crop": "",
        "crop_sha256": "",
        "score": judged.score,
    }
    if face is None:
        return row, b""
    row |= {
        "quad": np.asarray(face.quad).ravel().tolist(),
        "points": np.asarray(face.points).ravel().tolist(),
        "crop": f"private/crops/{recipe[:16]}/{image_id}-{judged.number}.png",
        "crop_sha256": pixel_digest(face.crop),
    }
    return row, png_bytes(face.crop, None)
