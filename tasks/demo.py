"""The demo's own steps: people who do not exist, photographed badly on purpose, a reviewer.

The reviewer looks at the gates only.
"""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np

from sdflow_core.records.config import Config
from sdflow_core.records.decisions import decide, edit_rows, load_edit_run
from sdflow_core.records.errors import ContractError
from sdflow_core.records.keys import canonical_json
from sdflow_core.records.objects import LocalStore
from sdflow_core.weights.embedded import accept_for_demo, install_embedded
from sdflow_core.weights.model_store import Bundles
from tasks.runtime import CALLS, networks_of, pin_bundle, store_at
from tasks.step import Job, StepRun, step

DEMO_DATASET = "demo"
DEMO_REQUESTS: list[dict[str, float | str]] = [
    {"smiling": "flip"},
    {"young": "flip"},
    {"male": "flip"},
    {"eyeglasses": "flip"},
]
_PHOTOS, _CONSENT, _RELEASED = "demo/photos", "demo/consent.csv", "demo/released"
_TRUNCATION, _SEED = 0.85, 20
_MTIME_SECONDS = 1_750_000_000  # files of the demo look the same in every run


class DemoFolder(Config):
    """Where the demo's customer keeps things."""

    photos: str
    consent: str
    released: str


def demo_training(overrides: dict[str, Any] | None) -> dict[str, Any]:
    """Training of the demo's editor; the defaults, unless a test makes it smaller."""
    return overrides or {}


@step("install models")
def install_models(run: StepRun) -> Job:
    """Accept the embedded licence for the demo's store and promote the embedded bundle, once."""
    store = run.store
    accept_for_demo(store)
    bundles, bundle = Bundles(store), install_embedded(store)
    current = bundles.current()
    if current is None or current.model_copy(update={"editor": None}).digest != bundle.digest:
        bundles.promote(bundle, "sdflow demo", "embedded models")
    return run.job.model_copy(update={"bundle": pin_bundle(store).digest})


@step("make people")
def make_people(run: StepRun, count: int) -> DemoFolder:
    """Sample `count` people from the prior, written as a customer would hand them over, awkward files too."""
    import torch

    store = run.store
    folder = DemoFolder(photos=f"store:{_PHOTOS}", consent=f"store:{_CONSENT}", released=f"store:{_RELEASED}")
    size, marker = "demo/size.json", "demo/people.json"
    if not store.create(size, canonical_json({"people": count})):
        known = json.loads(store.read(size))["people"]
        if known != count:
            raise ContractError(
                "this store holds a demo of another size",
                expected=f"--images {known}",
                found=f"--images {count}",
                where=store.uri,
                todo="use another --store, or the same number of images",
            )
    if store.exists(marker):
        return folder
    networks = networks_of(store, run.job.bundle)
    codes = networks.prior.sample(count, torch.Generator().manual_seed(_SEED), truncation=_TRUNCATION)
    images = ((networks.render(codes) + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    people = [photograph(image) for image in images]
    rows = ["source,subject,attributes,expires,evidence"]
    for name, data, attributes in _files(people):
        store.create(f"{_PHOTOS}/{name}", data)
        if isinstance(store, LocalStore):
            os.utime(store.root / _PHOTOS / name, (_MTIME_SECONDS, _MTIME_SECONDS))
        if attributes:
            rows.append(f"{name},person-{len(rows):04d},{attributes},,synthetic")
    store.create(_CONSENT, ("\n".join(rows) + "\n").encode())
    store.create(marker, canonical_json({"people": count, "seed": _SEED, "truncation": _TRUNCATION}))
    return folder


def photograph(face: Any) -> Any:
    """A crop uint8 [H, H, 3] -> a picture uint8 [288, 288, 3] with soft surroundings.

    So that a detector meets a face in a frame.
    """
    import cv2

    side, frame = 192, 288
    pad = (frame - side) // 2
    big = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC)
    wide = cv2.copyMakeBorder(big, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
    soft = cv2.GaussianBlur(wide, (0, 0), 14)
    yy, xx = np.mgrid[0:frame, 0:frame]
    outside = np.maximum(np.abs(yy - frame / 2 + 0.5), np.abs(xx - frame / 2 + 0.5)) - side / 2
    blend = np.clip(outside / 16.0, 0.0, 1.0)[:, :, None]
    return np.rint(wide * (1 - blend) + soft * blend).astype(np.uint8)


def _encoded(picture: Any, kind: str, **options: Any) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    image = Image.fromarray(picture)
    (image.convert("CMYK") if options.pop("cmyk", False) else image).save(out, kind, **options)
    return out.getvalue()


def _files(people: list[Any]) -> list[tuple[str, bytes, str]]:
    """(name, bytes, consented attributes or "" for none); the awkward ones come last."""
    out: list[tuple[str, bytes, str]] = []
    for number, picture in enumerate(people):
        if number % 3 == 2:
            out.append((f"person-{number:04d}.png", _encoded(picture, "PNG"), "*"))
        else:
            out.append((f"person-{number:04d}.jpg", _encoded(picture, "JPEG", quality=95), "*"))
    first, second = people[0], people[1 % len(people)]
    jpeg = _encoded(first, "JPEG", quality=95)
    frames = [first[::4, ::4], second[::4, ::4]]
    out += [
        ("awkward/empty.jpg", b"", "*"),
        ("awkward/truncated.jpg", jpeg[: len(jpeg) // 2], "*"),
        ("awkward/text.jpg", b"this is no picture\n", "*"),
        (
            "awkward/nobody.png",
            _encoded(np.tile(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (256, 1, 3)), "PNG"),
            "*",
        ),
        ("awkward/couple.png", _encoded(np.concatenate([first, second], axis=1), "PNG"), "*"),
        ("awkward/animated.gif", _animation(frames), "*"),
        ("awkward/same bytes again.jpg", jpeg, "*"),
        ("awkward/portrait été 人.png", _encoded(second[:, ::-1].copy(), "PNG"), "smiling;eyeglasses"),
        ("awkward/print.jpg", _encoded(second, "JPEG", quality=95, cmyk=True), "*"),
        ("awkward/nobody-asked.jpg", _encoded(people[-1], "JPEG", quality=90), ""),
    ]
    return out


def _animation(frames: list[Any]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=200)
    return out.getvalue()


@step("decide")
def demo_decision(run: StepRun, edit_run: str) -> int:
    """Approve what waits, reject the edit with the least identity: a decision as a reviewer would leave."""
    rows = edit_rows(run.store, load_edit_run(run.store, edit_run))
    waiting = sorted((r["identity"], key) for key, r in rows.items() if r["status"] == "waiting")
    reject = [waiting[0][1]] if len(waiting) > 1 else []
    approve = [key for _, key in waiting if key not in reject]
    said = decide(
        run.store,
        edit_run,
        approve=approve,
        reject=reject,
        who="sdflow demo",
        note="made by the demo, not by a person: all that passed the gates but the least like its source",
    )
    return sum(d.approved for d in said.values())


def demo_summary(
    job: Job, sources: dict[str, Any], edits: dict[str, Any], released: dict[str, Any]
) -> dict[str, Any]:
    """The demo's figures, without time and memory, which the caller measures."""
    figures = {
        name: edits[name]
        for name in ("n", "accuracy", "judge_accuracy", "identity", "preservation", "status", "attributes")
    }
    return {
        "store": store_at(job.store).uri,
        "sources": sources,
        "edits": figures,
        "edit_run": edits["edit_run"],
        "model_calls": sum(CALLS.values()),
        "contact_sheet": edits["contact_sheet"],
        "release": released["release_id"],
        "released": released["outputs"],
    }
