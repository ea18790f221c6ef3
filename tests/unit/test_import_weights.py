"""`sdflow models inspect|import|assemble`: a file of every family, from a folder, a bucket, a web server."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cli.main as command
from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.generator import Generator
from sdflow_core.faces.networks import Networks
from sdflow_core.method.editing import load_editor
from sdflow_core.method.paper import PaperFlow
from sdflow_core.records.errors import ContractError
from sdflow_core.records.store import LocalStore, open_store
from sdflow_core.weights.assembling import assembled, check_bundle
from sdflow_core.weights.embedded import install_embedded
from sdflow_core.weights.front import inspect
from sdflow_core.weights.model_store import ModelStore
from sdflow_core.weights.sdflow_files import write_flow
from sdflow_core.weights.sets import find_sets
from tasks import recipes
from tasks.weight_files import public_address, weight_file
from tests import encoder_makers, weight_makers
from tests.s3_server import S3Server

pytestmark = pytest.mark.weights

DIM = 32


def run(capsys: pytest.CaptureFixture[str], store: Path | str, *words: str) -> tuple[int, dict[str, Any]]:
    code = command.app(["--store", str(store), "models", *words, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, json.loads(out.splitlines()[-1])


def digest(said: dict[str, Any], kind: str) -> str:
    return next(model["digest"] for model in said["models"] if model["kind"] == kind)


def generator_content(size: int = 64) -> dict[str, Any]:
    return weight_makers.rosinality_content(size, base=512, top=16, style_dim=DIM, depth=2)


def e4e_file(path: Path, size: int = 64, **changes: Any) -> Path:
    rows = 2 * (size.bit_length() - 1) - 2
    content = encoder_makers.encoder_content(
        encoder_makers.small_encoder(rows),
        latent_avg=torch.randn(rows, DIM),
        decoder=generator_content(size)["g_ema"],
        **changes,
    )
    torch.save(content, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    return tmp_path


def test_an_e4e_file_is_two_models_that_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, store = e4e_file(folder / "x.pt"), folder / "store"
    code, said = run(capsys, store, "inspect", str(path))
    assert (code, said["kind"], said["family"], said["layers"]) == (0, "encoder", "e4e", 10)
    assert not store.exists(), "looking keeps nothing"
    code, said = run(capsys, store, "import", str(path), "--note", "from a colleague")
    assert code == 0
    models = ModelStore(LocalStore(str(store)))
    card = models.card(digest(said, "encoder"))
    assert (
        card["source"] == str(path) and card["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    assert card["architecture"] == "e4e" and "colleague" in card["notes"] and card["licence"]
    assert run(capsys, store, "import", str(path), "--note", "from a colleague")[1] == said  # once is enough
    encoder, generator = digest(said, "encoder"), digest(said, "generator")
    code, fits = run(capsys, store, "assemble", "--generator", generator[:8], "--encoder", encoder[:8])
    assert code == 0 and fits["resolution"] == 64 and fits["template_scale"] == 1.0
    bundle = find_sets(models.store, fits["bundle"])[0]
    networks = Networks(models, bundle, micro_batch=2)
    faces = np.zeros((3, 64, 64, 3), np.uint8)
    codes = torch.from_numpy(networks.encode(faces))
    pictures = networks.render(codes)
    assert codes.shape == (3, 10, DIM) and pictures.shape == (3, 3, 64, 64)
    assert networks.scores(pictures).shape == networks.judged(pictures).shape == (3, len(bundle.attributes))
    code, promoted = run(capsys, store, "promote", fits["bundle"][:12], "--by", "ann")
    assert code == 0 and promoted["bundle"] == fits["bundle"]


def test_embedded_observers_look_at_the_middle_of_wider_crops(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = folder / "store"
    said = run(capsys, store, "import", str(e4e_file(folder / "x.pt")))[1]
    models = ModelStore(LocalStore(str(store)))
    bundle = assembled(models, {kind: digest(said, kind) for kind in ("generator", "encoder")})
    assert bundle.labeller is not None
    labeller = load_model(models.weights(bundle.labeller), expect="labeller")
    own = load_model(models.weights(models.card(bundle.labeller)["of"]), expect="labeller")
    assert labeller.config.crop == pytest.approx(0.7)
    wide = torch.rand(2, 3, 640, 640) * 2 - 1
    nearer = wide[:, :, 96:544, 96:544]
    assert torch.equal(labeller.scores(wide), own.scores(nearer))
    assert "crop" not in own.config.model_dump()  # digests of models from before stay what they were


def test_every_family_is_imported_from_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = folder / "store"
    made = run(capsys, store, "import", str(e4e_file(folder / "e4e.pt")))[1]
    encoder, generator = digest(made, "encoder"), digest(made, "generator")
    models = ModelStore(LocalStore(str(store)))

    weight_makers.rosinality_file(folder / "r.pt", base=512, top=16, style_dim=DIM, depth=2)
    weight_makers.nvidia_pickle(folder / "n.pkl", base=512, top=16, style_dim=DIM, depth=2)
    for name in ("r.pt", "n.pkl"):
        said = run(capsys, store, "import", str(folder / name))[1]
        assert isinstance(load_model(models.weights(digest(said, "generator"))), Generator)

    psp = encoder_makers.encoder_content(encoder_makers.small_encoder(10), encoder_type=None)
    torch.save(psp, folder / "psp.pt")
    code, refused = run(capsys, store, "import", str(folder / "psp.pt"))
    assert code and "flavour" in json.dumps(refused)
    said = run(capsys, store, "import", str(folder / "psp.pt"), "--flavour", "psp")[1]
    assert models.card(digest(said, "encoder"))["architecture"] == "psp"
    restyle = encoder_makers.encoder_content(encoder_makers.small_encoder(10, restyle=True))
    torch.save(restyle, folder / "restyle.pt")
    said = run(capsys, store, "import", str(folder / "restyle.pt"), "--iterations", "2")[1]
    bundle = assembled(models, {"generator": generator, "encoder": digest(said, "encoder")})
    assert Networks(models, bundle, micro_batch=1).encode(np.zeros((1, 64, 64, 3), np.uint8)).shape == (
        1,
        10,
        DIM,
    )

    shapes = encoder_makers.arcface(encoder_makers.SMALL, 8, 2, 16)
    torch.save(encoder_makers.draw(shapes), folder / "arc.pth")
    shapes = encoder_makers.iresnet(encoder_makers.SMALL, (3, 4, 14, 3), 2, 16)
    torch.save(encoder_makers.draw(shapes), folder / "ires.pth")
    points = np.array([[[20, 25], [42, 25], [31, 35], [23, 46], [40, 46]]], float)
    for name in ("arc.pth", "ires.pth"):
        said = run(capsys, store, "import", str(folder / name))[1]
        chosen = {"generator": generator, "encoder": encoder, "identity": digest(said, "identity")}
        networks = Networks(models, assembled(models, chosen))
        vector = networks.embed(np.full((1, 64, 64, 3), 9, np.uint8), points)
        assert vector.shape == (1, 16) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)

    torch.save(encoder_makers.draw(encoder_makers.classifier(34, 4)), folder / "attr.pth")
    names = "smiling,young,male,eyeglasses"
    said = run(capsys, store, "import", str(folder / "attr.pth"), "--attributes", names)[1]
    labeller = digest(said, "labeller")
    assert models.card(labeller)["attributes"] == names.split(",")

    np.save(folder / "smile.npy", np.ones((1, DIM), np.float32))
    words = ["--encoder", encoder, "--labeller", labeller, "--attributes", "smiling"]
    said = run(capsys, store, "import", str(folder / "smile.npy"), *words)[1]
    editor = load_editor(models.weights(digest(said, "editor")))
    assert editor.attributes == ("smiling",) and editor.encoder_digest == encoder
    flow = PaperFlow(10, DIM, 4)
    (folder / "prior-0010000").write_bytes(write_flow(flow))
    words = ["--encoder", encoder, "--labeller", labeller]
    said = run(capsys, store, "import", str(folder / "prior-0010000"), *words)[1]
    editor = load_editor(models.weights(digest(said, "editor")))
    assert (editor.rows, editor.dim, editor.attributes) == (10, DIM, tuple(names.split(",")))
    code, refused = run(capsys, store, "import", str(folder / "prior-0010000"))
    assert code and "a flow alone edits nothing" in json.dumps(refused)


def test_models_that_do_not_fit_are_refused_before_anything_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = folder / "store"
    small = run(capsys, store, "import", str(e4e_file(folder / "64.pt")))[1]
    large = run(capsys, store, "import", str(e4e_file(folder / "256.pt", 256)))[1]
    words = ["--generator", digest(large, "generator"), "--encoder", digest(small, "encoder")]
    code, said = run(capsys, store, "assemble", *words)
    assert code and "14 rows of 32" in json.dumps(said) and "10 rows of 32" in json.dumps(said)
    models = ModelStore(LocalStore(str(store)))
    fits = assembled(models, {kind: digest(small, kind) for kind in ("generator", "encoder")})
    with pytest.raises(ContractError, match="resolution of the bundle"):
        check_bundle(models, fits.model_copy(update={"resolution": 128}))
    with pytest.raises(ContractError, match="attributes of the labeller"):
        check_bundle(models, fits.model_copy(update={"attributes": ("smiling",)}))
    with pytest.raises(ContractError, match="model kind of the encoder"):
        check_bundle(models, fits.model_copy(update={"encoder": fits.generator}))
    with pytest.raises(ContractError, match="encoder and generator of other resolutions"):
        embedded = assembled.__globals__["install_embedded"](models.store)
        weight_makers.rosinality_file(folder / "g.pt", base=512, top=16, style_dim=128, depth=2)
        said = run(capsys, store, "import", str(folder / "g.pt"))[1]
        other = load_model(models.weights(embedded.encoder or ""), expect="encoder")
        wide = type(other)(other.config.model_copy(update={"resolution": 128}))
        key = models.add("encoder", save_model(wide), {"title": "wide"})
        assembled(models, {"generator": digest(said, "generator"), "encoder": key})
    # nor does a single model take the place of another that it does not fit
    assert run(capsys, store, "promote", "embedded", "--by", "ann")[0] == 0
    code, said = run(capsys, store, "promote", digest(large, "generator"), "--by", "ann")
    assert code and "encoder and generator do not fit" in json.dumps(said)
    # a file that says it counts from a mean w, and does not hold it
    content = encoder_makers.encoder_content(encoder_makers.small_encoder(10), start_from_latent_avg=True)
    torch.save(content, folder / "mean.pt")
    code, said = run(capsys, store, "import", str(folder / "mean.pt"))
    assert code and "mean" in json.dumps(said)


@pytest.mark.s3
def test_over_s3(s3: S3Server, s3_prefix: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = e4e_file(folder / "x.pt")
    open_store(f"s3://faces/{s3_prefix}").put("weights/x.pt", path.read_bytes())
    uri, store = f"s3://faces/{s3_prefix}/weights/x.pt", f"s3://store/{s3_prefix}"
    code, said = run(capsys, store, "import", uri)
    assert code == 0
    card = ModelStore(open_store(store)).card(digest(said, "generator"))
    assert card["source"] == uri and card["source_size_bytes"] == path.stat().st_size
    words = ["--generator", digest(said, "generator"), "--encoder", digest(said, "encoder")]
    assert run(capsys, store, "assemble", *words)[0] == 0
    assert run(capsys, store, "import", uri + ".gone")[0] != 0


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    """A web server on this machine for the files of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, directory=str(folder), **options)

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_over_the_web_only_what_was_asked_for(web: str, folder: Path) -> None:
    (folder / "net.pt").write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    with weight_file(f"{web}/net.pt", right) as path:
        assert path.read_bytes() == b"weights"
    assert not path.exists()
    with pytest.raises(ContractError) as refused, weight_file(f"{web}/net.pt?key=secret", right) as path:
        inspect(path)
    assert f"Where: {web}/net.pt." in str(refused.value)
    for uri, sha256, words in (
        (f"{web}/net.pt", None, "unprotected"),
        (f"{web}/net.pt", "0" * 64, "another file"),
        (f"{web}/gone.pt", right, "no such weight file"),
        ("ftp://host/x", None, "address of a weight file"),
        ("https://127.0.0.1:1/x.pt", None, "could not be fetched"),
        (str(folder / "gone"), None, "no such weight file"),
    ):
        with pytest.raises(Exception, match=words), weight_file(uri, sha256):
            pass
    assert public_address("https://u:secret@h:8/a?token=secret#x") == "https://h:8/a"


def test_faces_and_framing_travel_with_the_bundle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = folder / "store"
    said = run(capsys, store, "import", str(e4e_file(folder / "x.pt")))[1]
    words = ["--generator", digest(said, "generator"), "--encoder", digest(said, "encoder")]
    code, fits = run(capsys, store, "assemble", *words, "--faces", "largest")
    bundle = find_sets(LocalStore(str(store)), fits["bundle"])[0]
    config = recipes.ingest_config(bundle)
    assert (code, config.framing, config.faces, config.template_scale) == (0, "ffhq", "largest", 1.0)
    assert run(capsys, store, "assemble", *words, "--faces", "all")[1]["bundle"] != fits["bundle"]
    assert run(capsys, store, "assemble", *words, "--faces", "both")[0] == 2
    embedded = install_embedded(LocalStore(str(store)))
    assert "framing" not in embedded.model_dump() and "faces" not in embedded.model_dump()
    assert "framing" not in recipes.ingest(embedded).document["config"]  # recipes from before stay
