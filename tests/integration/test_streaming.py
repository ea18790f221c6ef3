"""Shard tasks as streams: the bytes of a plain loop, whatever the threads, and memory that does not grow."""

from __future__ import annotations

import io
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.errors import TransientError
from sdflow_core.records.lineage import Lineage
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table, wplus_numpy
from tests.fakes import FakeNetworks
from tests.s3_server import S3Server
from tests.shards import CONSENT, job_for, run_edit, run_ingest, run_invert, run_label, with_models


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Any:
    yield
    assert [t.name for t in threading.enumerate() if t.name.startswith("sdflow-stream")] == []


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(io_threads: int, pixel_threads: int, shard_rows: int = 1000) -> None:
        monkeypatch.setenv("SDFLOW_IO_THREADS", str(io_threads))
        monkeypatch.setenv("SDFLOW_PIXEL_THREADS", str(pixel_threads))
        monkeypatch.setenv("SDFLOW_SHARD_ROWS", str(shard_rows))

    return use


@pytest.fixture
def consent(tmp_path: Path) -> Path:
    path = tmp_path / "consent.csv"
    path.write_text(CONSENT)
    return path


def tiny_pictures(count: int) -> list[bytes]:
    """Pictures of chance, [48, 48, 3] as PNG files."""
    from PIL import Image

    chance = np.random.default_rng(0)
    found: list[bytes] = []
    for _ in range(count):
        out = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(out, "PNG")
        found.append(out.getvalue())
    return found


def told(store: Store, dataset: str) -> dict[str, Any]:
    """All that rows say, and the bytes of the pictures that they name, without who computed it when."""
    found: dict[str, Any] = {"digests": canonical_digests(store, dataset)}
    for name in ("sources", "faces", "latents", "labels", "edits"):
        table = Table(store, dataset, name)
        if not table.recipes():
            continue
        rows = table.read()
        if "w_plus" in rows.column_names:
            found["w_plus"] = wplus_numpy(rows, "w_plus").tobytes()
            rows = rows.drop_columns(["w_plus"])
        # what varies with the moment of writing, not with the row
        kept = [column for column in rows.column_names if column not in ("run", "mtime_ns", "subject")]
        found[name] = rows.select(kept).to_pylist()
        for column in {"crop", "output", "before"} & set(kept):
            found[f"{name} {column}"] = [store.read(key) for key in rows[column].to_pylist() if key]
    return found


@pytest.mark.s3
def test_threads_and_queues_change_no_byte_on_s3(
    s3: S3Server, s3_prefix: str, threads: Any, consent: Path
) -> None:
    from tasks.runtime import networks_from

    source = open_store(f"s3://faces/{s3_prefix}")
    for number, data in enumerate(tiny_pictures(40)):
        source.put(f"{number:03d}.png", data)
    source.put("no picture.jpg", b"this is text")
    seen: list[dict[str, Any]] = []
    for name, (io_threads, pixels, shard) in {"one": (1, 1, 1000), "many": (16, 3, 17)}.items():
        threads(io_threads, pixels, shard)
        store = open_store(f"s3://store/{s3_prefix}/{name}")
        job = job_for(store, with_models(store))
        fakes: list[FakeNetworks] = []

        def make(bundle: Any, fakes: list[FakeNetworks] = fakes) -> FakeNetworks:
            fakes[:] = fakes or [FakeNetworks(bundle)]
            return fakes[0]

        with networks_from(make):
            run_ingest(job, source.uri, consent)
            run_invert(job)
            run_label(job)
        assert fakes[0].rows == {"detector": 40, "encoder": 40, "generator": 40, "labeller": 40}
        seen.append(told(store, "people"))
    assert [len(seen[0][name]) for name in ("sources", "faces", "latents", "labels")] == [41, 40, 40, 40]
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_a_stream_gives_what_a_plain_loop_gives(
    tmp_path: Path, threads: Any, consent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the embedded models: every row is what its picture alone gives, bit for bit."""
    import torch

    from sdflow_core.faces.ingestion import align_bytes
    from sdflow_core.faces.networks import to_tensor
    from sdflow_core.faces.pixels import pixel_digest, png_bytes, read_png
    from sdflow_core.method.evaluation import inversion_psnr
    from sdflow_core.method.rendering import Variant, render_edits
    from tasks.edit_plan import edit_config
    from tasks.recipes import ingest_config
    from tasks.runtime import editor_of, networks_of
    from tests.nights import write_people

    threads(5, 3)
    store = open_store(str(tmp_path / "store"))
    bundle = with_models(store)
    job, networks = job_for(store, bundle), networks_of(store, bundle)
    write_people(store, bundle, tmp_path / "photos", 0, 17)  # a row alone in its micro-batch
    run_ingest(job, str(tmp_path / "photos"), consent)
    run_invert(job)
    run_label(job)
    monkeypatch.setattr("tasks.edit.CHUNK_ROWS", 6)
    plan = run_edit(job, [{"smiling": 0.9}])

    sources = Table(store, "people", "sources").read().to_pylist()
    faces = {row["face_id"]: row for row in Table(store, "people", "faces").read().to_pylist()}
    for row in sources:
        data = Path(row["uri"]).read_bytes()
        aligned = align_bytes(data, networks.detector.find, ingest_config(networks.bundle))
        assert faces[row["face_id"]]["crop_sha256"] == pixel_digest(aligned.crop)
        assert faces[row["face_id"]]["points"] == aligned.points.ravel().tolist()
    assert len(sources) == len(faces) == 17

    latents = Table(store, "people", "latents").read()
    crops = np.stack([read_png(store.read(faces[key]["crop"])) for key in latents["face_id"].to_pylist()])
    codes = networks.encode(crops)
    assert np.array_equal(wplus_numpy(latents, "w_plus"), codes)
    psnr = inversion_psnr(to_tensor(crops), networks.render(torch.from_numpy(codes))).numpy()
    assert np.array_equal(latents["reconstruction_psnr_db"].to_numpy(), psnr)
    labels = Table(store, "people", "labels").read()
    scores = networks.scores(to_tensor(crops)).numpy()
    for number, name in enumerate(networks.bundle.attributes):
        assert np.array_equal(labels[name].to_numpy(), scores[:, number])

    place = {key: i for i, key in enumerate(latents["face_id"].to_pylist())}
    rows = Table(store, "people", "edits").read().to_pylist()
    assert len(rows) == 17 == plan.shards.wanted and {row["status"] for row in rows} <= {"waiting", "gated"}
    editor = editor_of(store, networks.digest("editor"))
    codes_of = torch.from_numpy(codes[[place[row["face_id"]] for row in rows]])
    points = np.array([faces[row["face_id"]]["points"] for row in rows]).reshape(-1, 5, 2)
    variant, config = Variant(targets={"smiling": 0.9}), edit_config(None)
    whole = render_edits(networks, editor, codes_of, points, variant, config)
    assert [row["pixel_sha256"] for row in rows] == [pixel_digest(picture) for picture in whole.after]
    assert [store.read(row["before"]) for row in rows] == [png_bytes(p, None) for p in whole.before]
    assert [row["identity"] for row in rows] == [float(value) for value in whole.identity]
    assert [row["reason"] for row in rows] == whole.gate
    assert np.array_equal([row["labels_after"] for row in rows], whole.labels_after.numpy())


def _committed_faces(store: Store, bundle: str, count: int) -> None:
    """Rows of `faces` and `sources` with crops of chance, as ingest leaves them."""
    from tasks.runtime import networks_from

    folder = Path(store.uri).parent / "photos"
    folder.mkdir()
    for number, data in enumerate(tiny_pictures(count)):
        (folder / f"{number:03d}.png").write_bytes(data)
    (folder.parent / "all.csv").write_text(CONSENT)
    with networks_from(FakeNetworks):
        run_ingest(job_for(store, bundle), str(folder), folder.parent / "all.csv")


def test_pictures_in_memory_do_not_grow_with_the_rows(
    tmp_path: Path, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sdflow_core.faces.pixels
    from tasks.runtime import networks_from

    threads(3, 2)
    store = open_store(str(tmp_path / "store"))
    bundle = with_models(store)
    _committed_faces(store, bundle, 200)
    alive: dict[int, weakref.ref[Any]] = {}
    lock, most = threading.Lock(), [0]
    read_png = sdflow_core.faces.pixels.read_png

    def counted(data: bytes) -> Any:
        picture = read_png(data)
        with lock:
            alive[id(picture)] = weakref.ref(picture)
            for key in [key for key, held in alive.items() if held() is None]:
                del alive[key]
            most[0] = max(most[0], len(alive))
        return picture

    monkeypatch.setattr(sdflow_core.faces.pixels, "read_png", counted)

    def slow(bundle: Any) -> FakeNetworks:
        return FakeNetworks(bundle, {"encoder": 0.001, "labeller": 0.001}, micro_batch=8)

    with networks_from(slow):
        run_invert(job_for(store, bundle))
        run_label(job_for(store, bundle))
    assert Table(store, "people", "latents").ref().rows == Table(store, "people", "labels").ref().rows == 200
    # two a pixel thread; a batch being gathered, two that wait or are stacked, one in the model
    assert 8 < most[0] <= 2 * 2 + 4 * 8


def test_one_write_that_fails_ends_a_shard_and_commits_nothing(
    tmp_path: Path, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdflow_core.records.objects import LocalStore

    threads(4, 2)
    store = open_store(str(tmp_path / "store"))
    bundle = with_models(store)
    create, lock, crops = LocalStore.create, threading.Lock(), [0]

    def breaks(self: LocalStore, key: str, data: bytes) -> bool:
        if key.startswith("private/crops/"):
            with lock:
                crops[0] += 1
            if crops[0] > 20:
                raise TransientError("the store is away")
        return create(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "create", breaks)
        with pytest.raises(TransientError, match="the store is away"):
            _committed_faces(store, bundle, 60)
    assert Table(store, "people", "sources").ref().rows == Table(store, "people", "faces").ref().rows == 0
    events = [event["eventType"] for event in Lineage(store).events()]
    assert events.count("FAIL") == 1 and crops[0] < 60


def test_the_record_of_a_run_says_how_busy_the_model_was(tmp_path: Path, threads: Any) -> None:
    from tasks.runtime import listening, networks_from, pace_of

    threads(2, 2)
    store = open_store(str(tmp_path / "store"))
    bundle = with_models(store)
    _committed_faces(store, bundle, 24)
    heard: list[tuple[str, int, int]] = []

    with networks_from(FakeNetworks), listening(lambda *told: heard.append(told)):
        run_invert(job_for(store, bundle))
    assert heard == [("invert", number, 24) for number in range(1, 25)]
    pace = pace_of("invert")
    assert pace is not None and pace.done == 24 and pace.seconds_left == 0
    (complete,) = [
        event
        for event in Lineage(store).events()
        if (event["eventType"], event["job"]["name"]) == ("COMPLETE", "invert")
    ]
    figures = complete["run"]["facets"]["sdflow"]["figures"]
    assert 0 < figures["busy_share"] <= 1 and figures["images_per_second"] > 0
