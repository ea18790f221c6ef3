"""Wrong use of the command: one clear message with what to do, exit code 2, nothing half-written."""

from __future__ import annotations

import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from sdflow_core.faces.checkpoint import save_model
from sdflow_core.faces.encoder import Encoder, EncoderConfig
from sdflow_core.records.digests import canonical_digests
from sdflow_core.records.store import open_store
from sdflow_core.weights.model_store import Bundles, ModelStore
from tests.e2e.running import sdflow

pytestmark = pytest.mark.e2e
Finished = tuple[Path, dict[str, Any]]


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished store that a test may damage."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy", ignore=shutil.ignore_patterns("state")))


def message(store: Path, *words: str) -> str:
    return str(sdflow(store, *words, code=2)["error"]["message"])


def test_unknown_attribute_and_strength_out_of_range(copy: Path) -> None:
    before = canonical_digests(open_store(str(copy)), "demo")
    text = message(copy, "edit", "demo", "--set", "beard=0.9")
    assert "unknown attribute" in text and "beard" in text and "smiling" in text and "What to do" in text
    text = message(copy, "edit", "demo", "--set", "smiling=1.5")
    assert "smiling" in text and "1.5" in text and "[0, 1]" in text
    for value in ("nan", "+1.5", "-0", "+", "up"):
        text = message(copy, "edit", "demo", f"--set=smiling={value}")
        assert "smiling" in text and value in text and "[0, 1]" in text and "+0.3" in text
    for words in ("smiling=", "=0.5", "smiling", "smiling= "):
        assert "NAME=VALUE" in message(copy, "edit", "demo", f"--set={words}")
    assert canonical_digests(open_store(str(copy)), "demo") == before


def test_empty_prefix_and_missing_consent(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    consent = tmp_path / "consent.csv"
    consent.write_text("source,subject,attributes,expires,evidence\n*,ann,*,,form\n")
    text = message(copy, "ingest", str(tmp_path / "empty"), "--name", "new", "--consent", str(consent))
    assert "nothing to ingest" in text and "What to do" in text
    assert not (copy / "private/datasets/new").exists()
    text = message(
        copy, "ingest", str(tmp_path / "empty"), "--name", "new", "--consent", str(tmp_path / "none.csv")
    )
    assert "none.csv" in text


def test_unwritable_store() -> None:
    text = message(Path("/proc/sdflow-store"), "invert", "demo")
    assert "cannot be written" in text and "--store" in text


def test_a_configured_server_that_does_not_answer(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.server import prefect_server
    from sdflow_core.records.errors import SDFlowError

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(SDFlowError, match="does not answer"), prefect_server(str(copy)):
        raise AssertionError("no server can have been reached")


def test_a_configured_server_that_is_not_prefect(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import partial

    from cli.server import prefect_server
    from sdflow_core.records.errors import SDFlowError

    serve = partial(SimpleHTTPRequestHandler, directory=str(copy.parent / "nothing"))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
        with pytest.raises(SDFlowError, match="404"), prefect_server(str(copy)):
            raise AssertionError("this is no Prefect server")
        server.shutdown()


def test_a_changed_journal_entry_stops_everything(copy: Path) -> None:
    entry = sorted((copy / "private/datasets/demo/journal").glob("0*.json"))[0]
    entry.write_bytes(entry.read_bytes().replace(b'"rows":', b'"rows" :', 1))
    text = message(copy, "invert", "demo")
    assert entry.name in text and "What to do" in text


def test_latents_of_another_encoder_are_not_edited(copy: Path) -> None:
    store = open_store(str(copy))
    bundle = Bundles(store).current()
    assert bundle is not None
    torch.manual_seed(0)
    other = ModelStore(store).add(
        "encoder", save_model(Encoder(EncoderConfig())), {"title": "another encoder"}
    )
    Bundles(store).promote(bundle.model_copy(update={"encoder": other}), "test", "another encoder")
    text = message(copy, "edit", "demo", "--set", "smiling=0.9")
    assert "another encoder" in text and "sdflow invert demo" in text


def test_models_need_their_licence_accepted(tmp_path: Path) -> None:
    store = tmp_path / "fresh"
    sdflow(store, "models", "promote", "embedded", "--by", "test")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"x")
    consent = tmp_path / "consent.csv"
    consent.write_text("source,subject,attributes,expires,evidence\n*,ann,*,,form\n")
    words = ("ingest", str(tmp_path / "photos"), "--name", "new", "--consent", str(consent))
    text = str(sdflow(store, *words, code=3)["error"]["message"])
    assert "licence" in text and "accept-licence" in text


def test_a_dry_run_counts_and_writes_no_edit(copy: Path) -> None:
    before = canonical_digests(open_store(str(copy)), "demo")
    plan = sdflow(copy, "edit", "demo", "--set", "smiling=0.9", "--dry-run")
    assert plan["rows"] == 11 and plan["held"] == 0
    assert plan["to_render"] == 11 and plan["refused_by_consent"] == 0
    assert canonical_digests(open_store(str(copy)), "demo") == before


def test_a_demo_of_another_size_does_not_mix_with_the_first(copy: Path) -> None:
    before = canonical_digests(open_store(str(copy)), "demo")
    text = message(copy, "demo", "--images", "9", "--training-steps", "10")
    assert "another size" in text and "--images 8" in text
    assert canonical_digests(open_store(str(copy)), "demo") == before
