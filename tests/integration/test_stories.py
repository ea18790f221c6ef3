"""Stories on a real Prefect server: what must not change results, and the pretraining of a small domain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.store import Store, open_store
from sdflow_core.records.tables import Table, wplus_numpy


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shard_size_and_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.ingest import ingest
    from flows.invert import invert
    from flows.label import label
    from tasks.demo import DemoFolder, install_models, make_people
    from tasks.step import Job

    def prepared(name: str, shard_rows: str, workers: str) -> Store:
        monkeypatch.setenv("SDFLOW_SHARD_ROWS", shard_rows)
        monkeypatch.setenv("SDFLOW_WORKERS", workers)
        store = open_store(str(tmp_path / name))
        job = Job(store=store.uri, dataset="demo", parent="test")
        folder: DemoFolder = make_people(install_models(job), 8)
        counts = ingest("demo", folder.photos, folder.consent, store.uri)
        assert counts["in"] == 18 == counts["kept"] + counts["dropped"]
        invert("demo", store.uri)
        label("demo", store.uri)
        return store

    one, many = prepared("one", "1000", "1"), prepared("many", "3", "2")
    assert canonical_digests(one, "demo") == canonical_digests(many, "demo")
    tables = [Table(store, "demo", "latents").read().sort_by("row_key") for store in (one, many)]
    assert tables[0]["row_key"].to_pylist() == tables[1]["row_key"].to_pylist()
    # one thread or two may round convolutions differently, rows of one shard or another may not
    assert abs(wplus_numpy(tables[0], "w_plus") - wplus_numpy(tables[1], "w_plus")).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pretrain_reads_a_folder_and_keeps_models_with_cards(tmp_path: Path) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from cli.models import find
    from embedded_models.recipe.export_models import export
    from flows.pretrain import pretrain
    from sdflow_core.faces.checkpoint import load_model
    from sdflow_core.faces.networks import Networks, to_uint8
    from sdflow_core.weights.embedded import install_embedded
    from sdflow_core.weights.model_store import Bundle, Bundles, ModelStore
    from tasks.demo import photograph

    store = open_store(str(tmp_path / "store"))
    networks = Networks(ModelStore(store), install_embedded(store))
    images = networks.render(networks.prior.sample(640, torch.Generator().manual_seed(0), truncation=0.7))
    scores = networks.scores(images).numpy()
    lines = ["path,smiling,young"]
    for number, pixels in enumerate(to_uint8(images)):
        folder = tmp_path / "people" / f"person {number}"
        folder.mkdir(parents=True)
        Image.fromarray(photograph(pixels)).save(folder / "1.jpg", quality=95)
        lines.append(f"person {number}/1.jpg,{scores[number, 0]:.4f},{scores[number, 1]:.4f}")
    (tmp_path / "people" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    config = {
        "attributes": ["smiling", "young"],
        "feature_steps": 4,
        "labeller_steps": 4,
        "judge_steps": 4,
        "prior_factors": 64,
        "autoencoder": {
            "steps": 4,
            "adversarial_from": 2,
            "batch": 4,
            "generator": {
                "resolution": 64,
                "style_dim": 64,
                "channel_base": 256,
                "channel_max": 12,
                "mapping_layers": 0,
            },
            "encoder": {"style_dim": 64, "channels": [4, 6, 8, 8, 8], "hidden": 16},
        },
    }
    facts = pretrain("small", str(tmp_path / "people"), str(tmp_path / "labels.csv"), config, store.uri)
    assert set(facts["models"]) == {"generator", "encoder", "prior", "labeller", "judge"}
    assert sum(facts["dropped"].values()) >= 1
    models = ModelStore(store)
    for kind, digest in facts["models"].items():
        assert load_model(models.weights(digest), expect=kind) is not None
        assert models.card(digest)["metrics"] == facts["metrics"]
        assert models.card(digest)["template_scale"] == 0.7 and models.card(digest)["data"]["faces"] > 500
    assert np.isfinite(facts["metrics"]["psnr_db"])
    beside = {key.rpartition("/")[2] for key in store.list("private/pretraining/")}
    assert {
        "autoencoder.bin",
        "features.bin",
        "history.jsonl",
        "losses-autoencoder.png",
        "samples.png",
    } <= beside
    bundle = find(store, facts["bundle"][:12])
    assert isinstance(bundle, Bundle) and bundle.digest == facts["bundle"]
    assert {kind: getattr(bundle, kind) for kind in facts["models"]} == facts["models"]
    assert bundle.detector and bundle.identity and bundle.attributes == ("smiling", "young")
    assert Bundles(store).current() is None, "nothing is promoted unasked"
    manifest = export(store, facts, tmp_path)
    assert manifest == {"attributes": ["smiling", "young"], "resolution": 64, "template_scale": 0.7}
    for kind, digest in facts["models"].items():
        packed = load_model((tmp_path / f"{kind}.safetensors").read_bytes(), expect=kind)
        whole = load_model(models.weights(digest), expect=kind)
        for name, value in whole.state_dict().items():
            assert torch.allclose(packed.state_dict()[name].float(), value.float(), rtol=1e-3, atol=1e-4)
