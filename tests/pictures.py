"""Pictures in numbers: people who do not exist, or chance, under as many names as wanted."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from sdflow_core.records.store import Store, open_store
from sdflow_core.streaming import Stage, streaming

PEOPLE = 32


def faces_256(store: Store, bundle: str, work: Path) -> list[bytes]:
    """Photographs of people who do not exist, 256 x 256 px JPEG files."""
    from PIL import Image

    from tests.nights import write_people

    write_people(store, bundle, work / "people", 0, PEOPLE)
    found: list[bytes] = []
    for path in sorted((work / "people").iterdir()):
        out = io.BytesIO()
        Image.open(path).resize((256, 256), Image.Resampling.LANCZOS).save(out, "JPEG", quality=95)
        found.append(out.getvalue())
    return found


def tiny() -> list[bytes]:
    """Pictures of chance, 48 x 48 px PNG files: next to no work, so that many rows are soon done."""
    from PIL import Image

    found: list[bytes] = []
    for seed in range(PEOPLE):
        out = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        found.append(out.getvalue())
    return found


def upload(uri: str, pictures: list[bytes], rows: int, ending: str) -> None:
    """The pictures under many names; each gets bytes of its own at its end, which no decoder looks at."""
    store = open_store(uri)

    def put(number: int) -> None:
        store.put(f"{number:07d}.{ending}", pictures[number % len(pictures)] + f"\n{number}".encode())

    with streaming(range(rows), [Stage("put", put, 16)]) as done:
        assert sum(1 for _ in done) == rows
