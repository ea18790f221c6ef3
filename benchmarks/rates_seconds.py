"""CPU seconds of shard tasks, decisions, releases and single networks, in this process, on a folder.

CPU seconds, not time on the wall: what else runs on the machine changes them little, and waiting for a disk
that is none of the user's is not counted. Needs OMP_NUM_THREADS=1, so that a network is one thread.
"""

from __future__ import annotations

import io
import statistics
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
REQUEST = {"smiling": 0.8}
_FEW = 16


class DeviceClock:
    """CPU seconds spent inside networks and editor, also when they call each other."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._inside = threading.local()

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, on the clock."""

        def inner(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "now", False):
                return call(*args, **kwargs)
            self._inside.now, started = True, time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self._inside.now = False
                with self._lock:
                    self.seconds += time.thread_time() - started

        return inner


@contextmanager
def device_clock() -> Generator[DeviceClock]:
    """A clock on everything that would run on a device: the torch networks and the flow."""
    from sdflow_core.faces.networks import Networks
    from sdflow_core.method.editing import FlowEditor, MapEditor

    clock, kept = DeviceClock(), []
    parts = [(editor, name) for editor in (FlowEditor, MapEditor) for name in ("prepare", "move")]
    for owner, name in ((Networks, "batched"), *parts):
        kept.append((owner, name, getattr(owner, name)))
        setattr(owner, name, clock.timed(getattr(owner, name)))
    try:
        yield clock
    finally:
        for owner, name, call in kept:
            setattr(owner, name, call)


def cpu(call: Callable[[], Any]) -> float:
    """CPU seconds of a call, all threads."""
    started = time.process_time()
    call()
    return time.process_time() - started


def best(call: Callable[[], Any], times: int = 3) -> float:
    """The least of some turns."""
    return min(cpu(call) for _ in range(times))


def slope(small: float, large: float, few: int, many: int) -> float:
    """More a row, never below 0."""
    return max((large - small) / (many - few), 0.0)


def shard_tasks(store: str, bundle: str, photos: list[Path], work: Path) -> dict[str, float]:
    """Two shards of each step, a small and a large one: seconds a row and seconds a shard."""
    from sdflow_core.records.decisions import decide
    from sdflow_core.records.releases import release
    from sdflow_core.records.store import open_store
    from tasks.edit import edit_shard
    from tasks.edit_plan import edit_config, plan_edit, variants_of
    from tasks.ingest import ingest_shard
    from tasks.ingest_plan import plan_ingest
    from tasks.latents import invert_shard, label_shard, plan_invert, plan_label
    from tasks.reports import contact_sheet
    from tasks.runtime import CALLS
    from tasks.step import Job

    consent = work / "consent.csv"
    consent.write_text("source,subject,attributes,expires,evidence\n*,nobody,*,,synthetic\n")
    bodies = {name: getattr(task, "fn") for name, task in  # noqa: B009  (without Prefect around it)
              (("plan_ingest", plan_ingest), ("ingest", ingest_shard), ("plan_invert", plan_invert),
               ("invert", invert_shard), ("plan_label", plan_label), ("label", label_shard),
               ("plan_edit", plan_edit), ("edit", edit_shard), ("sheet", contact_sheet))}  # fmt: skip
    opened, found = open_store(store), dict[str, list[tuple[int, float, float]]]()
    with device_clock() as clock:

        def told(name: str, rows: int, call: Callable[[], Any]) -> Any:
            before, answer = clock.seconds, []
            total = cpu(lambda: answer.append(call()))
            device = clock.seconds - before
            found.setdefault(name, []).append((rows, device, total - device))
            return answer[0]

        # the first turn opens everything and is forgotten
        for turn, rows in enumerate((4, _FEW, len(photos))):
            folder = work / f"rates-{turn}"
            folder.mkdir()
            for path in photos[:rows]:
                # one more byte behind the picture: another file, so that its crop is written again
                (folder / path.name).write_bytes(path.read_bytes() + bytes([turn]))
            job = Job(store=store, dataset=f"rates-{turn}", bundle=bundle, parent="measure")
            shards = bodies["plan_ingest"](job, str(folder), str(consent)).shards
            told("ingest", rows, lambda s=shards, j=job: bodies["ingest"](j, s[0]))
            for name in ("invert", "label"):
                shards = bodies[f"plan_{name}"](job).shards
                told(name, rows, lambda s=shards, j=job, n=name: bodies[n](j, s[0]))
            settings = edit_config(None)
            plan = bodies["plan_edit"](job, variants_of([dict(REQUEST)]), settings)
            flow = CALLS["generator"]
            told("edit", rows, lambda p=plan, j=job, c=settings: bodies["edit"](j, p.shards.shards[0], c))
            renders = CALLS["generator"] - flow
            waiting = sum(row["status"] == "waiting" for row in _edit_rows(opened, plan.edit_run))
            if waiting:
                run, target = plan.edit_run, str(work / f"released-{turn}")
                told("sheet", waiting, lambda r=run, j=job: bodies["sheet"](j, r))
                told("decide", waiting, lambda r=run: decide(opened, r, approve="all", who="bench"))
                told("publish", waiting, lambda r=run, t=target: release(opened, r, t, "measure"))
            if turn == 0:
                found.clear()
    out: dict[str, float] = {"edit.renders": renders / (len(photos) / 16)}
    fixed: list[float] = []
    for name, turns in found.items():
        if len(turns) < 2 or turns[0][0] == turns[1][0]:
            turns = [(0, 0.0, 0.0), turns[-1]]  # the editor is a poor one: nothing waited in the small shard
        (few, device_few, host_few), (many, device_many, host_many) = turns
        out[f"{name}.host"] = slope(host_few, host_many, few, many)
        if name in ("invert", "label", "edit"):
            out[f"{name}.device"] = slope(device_few, device_many, few, many)
        if name in ("ingest", "invert", "label", "edit"):
            fixed.append(max(host_few - few * out[f"{name}.host"], 0.0))
    out["shard.host"] = statistics.median(fixed)
    return out


def _edit_rows(store: Any, edit_run: str) -> list[dict[str, Any]]:
    from sdflow_core.records.decisions import edit_rows, load_edit_run

    return list(edit_rows(store, load_edit_run(store, edit_run)).values())


def parts(store: Any, bundle: str, photos: list[Path]) -> dict[str, float]:
    """Single networks and codecs: CPU seconds a row."""
    from PIL import Image

    from sdflow_core.faces.align import crop, points_in_crop, quad_from_points
    from sdflow_core.faces.decode import decode
    from sdflow_core.faces.networks import to_tensor
    from sdflow_core.faces.pixels import png_bytes, read_png
    from tasks.runtime import networks_of

    networks = networks_of(store, bundle)
    size, scale, rows = networks.bundle.resolution, networks.bundle.template_scale, 32
    files = [path.read_bytes() for path in photos[:rows]]
    pictures = [decode(data, max_pixels=10**8) for data in files]
    faces = [networks.detector.find(picture)[0] for picture in pictures]
    quads = [quad_from_points(face.points, scale) for face in faces]
    crops = np.stack([crop(p, q, size) for p, q in zip(pictures, quads, strict=True)])
    points = np.stack([points_in_crop(f.points, q, size) for f, q in zip(faces, quads, strict=True)])
    pngs = [png_bytes(one, None) for one in crops]
    import torch

    codes, tensor = torch.from_numpy(networks.encode(crops)), to_tensor(crops)
    calls: dict[str, Callable[[], Any]] = {
        "decode": lambda: [decode(data, max_pixels=10**8) for data in files],
        "detect": lambda: [networks.detector.find(picture) for picture in pictures],
        "align": lambda: [crop(p, q, size) for p, q in zip(pictures, quads, strict=True)],
        "encode": lambda: networks.encode(crops),
        "render": lambda: networks.render(codes),
        "score": lambda: networks.scores(tensor),
        "identity": lambda: networks.embed(crops, points),
        "png_encode": lambda: [png_bytes(one, None) for one in crops],
        "png_decode": lambda: [read_png(data) for data in pngs],
    }
    found: dict[str, float] = {}
    for name, call in calls.items():
        call()
        found[name] = best(call) / rows
    # the detector looks at no more than 640 px, so that larger pictures cost it nothing more
    wide = [np.asarray(Image.fromarray(p).resize((640, 640))) for p in pictures[:8]]
    calls["detect"]()
    wider = best(lambda: [networks.detector.find(picture) for picture in wide]) / len(wide)
    found["detect.large"] = max(wider - found["detect"], 0.0)
    found["image_px"] = float(pictures[0].shape[0])
    small, large = (_jpeg(Image, pictures[0], side) for side in (512, 2048))
    grown = best(lambda: decode(large, max_pixels=10**8)) - best(lambda: decode(small, max_pixels=10**8))
    found["decode.megapixel"] = max(grown, 0.0) / ((2048**2 - 512**2) / 1e6)
    return found


def _jpeg(image: Any, picture: Any, side: int) -> bytes:
    out = io.BytesIO()
    image.fromarray(picture).resize((side, side)).save(out, "JPEG", quality=90)
    return out.getvalue()
