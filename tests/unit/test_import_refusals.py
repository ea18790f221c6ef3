"""What a stranger gets wrong with weight files: refused in one line that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cli.main as command
from sdflow_core.faces.networks import Networks
from sdflow_core.method.editing import load_editor
from sdflow_core.method.training_set import EditorTraining, make_training_set
from sdflow_core.records.errors import ContractError
from sdflow_core.records.store import LocalStore
from sdflow_core.weights.assembling import assembled
from sdflow_core.weights.embedded import install_embedded
from sdflow_core.weights.model_store import ModelStore
from sdflow_core.weights.sdflow_files import RELEASED_ATTRIBUTES
from tests import encoder_makers, weight_makers

pytestmark = pytest.mark.weights

DIM = 32
DOCS = Path(__file__).parents[2] / "docs"


class Desk:
    """A store of one's own with an e4e encoder and its generator in it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys, self.store = folder, capsys, folder / "store"
        self.models = ModelStore(LocalStore(str(self.store)))
        torch.manual_seed(3)
        decoder = weight_makers.rosinality_content(64, base=512, top=16, style_dim=DIM, depth=2)["g_ema"]
        encoder, mean = encoder_makers.small_encoder(10), torch.randn(10, DIM)
        content = encoder_makers.encoder_content(
            encoder, latent_avg=mean, decoder=decoder, stylegan_size=1024
        )
        torch.save(content, folder / "e4e.pt")
        made = self.said("import", str(folder / "e4e.pt"), "--note", "from a colleague")["models"]
        self.encoder, self.generator = (model["digest"] for model in made)
        self.labeller = install_embedded(self.models.store).labeller or ""
        self.beside = ["--encoder", self.encoder, "--labeller", self.labeller]

    def run(self, *words: str) -> tuple[int, str]:
        code = command.app(["--store", str(self.store), "models", *words])
        out, err = self.capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out + err

    def said(self, *words: str) -> dict[str, Any]:
        code, text = self.run(*words, "--json")
        assert code == 0, text
        return json.loads(text.splitlines()[-1])

    def refused(self, *words: str) -> str:
        code, text = self.run(*words)
        assert code == 2 and len(text.splitlines()) == 1, text
        return text


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def test_notes_are_told_apart(desk: Desk) -> None:
    assert "and count; holds its generator too" in desk.run("inspect", str(desk.folder / "e4e.pt"))[1]
    assert "of 10 layers; from a colleague" in desk.models.card(desk.encoder)["notes"]


def test_an_import_ends_with_the_command_that_comes_next(desk: Desk) -> None:
    text = desk.run("import", str(desk.folder / "e4e.pt"))[1]
    assert f"assemble --generator {desk.generator[:12]} --encoder {desk.encoder[:12]}\n" in text
    torch.save(encoder_makers.draw(encoder_makers.classifier(34, 4)), desk.folder / "a.pth")
    text = desk.run("import", str(desk.folder / "a.pth"), "--attributes", "smiling")[1]
    assert "--generator DIGEST --encoder DIGEST --labeller " in text and text.endswith("--judge DIGEST\n")


def test_directions_of_another_width_or_number(desk: Desk) -> None:
    wide = desk.folder / "wide.npy"
    np.save(wide, np.ones((1, 512), np.float32))
    text = desk.refused("import", str(wide), *desk.beside, "--attributes", "smiling")
    assert "width 32" in text and "width 512" in text and "What to do" in text
    one = desk.folder / "one.npy"
    np.save(one, np.ones((1, DIM), np.float32))
    text = desk.refused("import", str(one), *desk.beside, "--attributes", "smiling,young")
    assert "Expected: 1 names" in text and "one.npy" in text and "What to do" in text
    text = desk.refused("import", str(one), *desk.beside, "--attributes", "smiling", "--components", "1")
    assert "components" in text


def test_components_are_chosen_and_named(desk: Desk) -> None:
    rng = np.random.default_rng(0)
    comp = rng.normal(size=(12, 1, DIM)).astype(np.float32)
    file = desk.folder / "g.npz"
    np.savez(file, comp=comp, mean=comp[0], std=np.full(12, 2, np.float32))

    def directions(*words: str) -> Any:
        names = ["--attributes", "smiling,young"]
        made = desk.said("import", str(file), *desk.beside, *names, *words)["models"]
        editor: Any = load_editor(desk.models.weights(made[0]["digest"]))
        assert editor.attributes == ("smiling", "young")
        return editor.directions[:, 0].numpy()

    np.testing.assert_allclose(directions(), 2 * comp[:2, 0], rtol=1e-6)
    np.testing.assert_allclose(directions("--components", "7,2"), 2 * comp[[7, 2], 0], rtol=1e-6)
    for wrong in ("7", "7,99", "7,7", "seven"):
        text = desk.refused(
            "import", str(file), *desk.beside, "--attributes", "smiling,young", "--components", wrong
        )
        assert "Expected" in text


def test_an_editor_needs_an_encoder_not_a_generator(desk: Desk) -> None:
    np.save(desk.folder / "one.npy", np.ones((1, DIM), np.float32))
    words = ["--encoder", desk.generator, "--labeller", desk.labeller, "--attributes", "smiling"]
    assert "Found: generator" in desk.refused("import", str(desk.folder / "one.npy"), *words)


def test_names_of_scores_are_those_of_the_published_file(desk: Desk) -> None:
    state = {f"backbone.{name}": v for name, v in encoder_makers.draw(encoder_makers.resnet(34)).items()}
    state |= {"backbone.fc.weight": torch.zeros(3, 512), "backbone.fc.bias": torch.zeros(3)}
    torch.save(state, desk.folder / "labeldist")
    released = f"--attributes {','.join(RELEASED_ATTRIBUTES)}"
    assert released in desk.refused("import", str(desk.folder / "labeldist"))
    assert released in (DOCS / "bring-your-own-weights.md").read_text()
    text = desk.refused("import", str(desk.folder / "labeldist"), "--attributes", "male,young,male")
    assert "each once" in text


def test_misfits_of_a_bundle(desk: Desk) -> None:
    both = ["assemble", "--generator", desk.generator, "--encoder", desk.encoder]
    assert "model kind of the identity" in desk.refused(*both, "--identity", desk.generator)
    for scale in ("-3", "nan", "inf"):
        assert "above 0" in desk.refused(*both, "--template-scale", scale)
    torch.save(encoder_makers.draw(encoder_makers.classifier(34, 4)), desk.folder / "a.pth")
    made = desk.said("import", str(desk.folder / "a.pth"), "--attributes", "smiling")["models"]
    assert "--judge D" in desk.refused(*both, "--labeller", made[0]["digest"])


def test_every_policy_of_faces_can_be_promoted(desk: Desk) -> None:
    for faces in ("all", "largest"):
        desk.said("promote", "embedded", "--by", "ann", "--faces", faces)
        bundle = desk.said("list")["bundle"]
        assert desk.said("show", bundle)["faces"] == faces


def test_bundles_that_were_put_together_are_listed(desk: Desk) -> None:
    assert "models assemble" in desk.refused("promote", desk.generator, "--by", "ann")
    both = ["--generator", desk.generator, "--encoder", desk.encoder, "--faces", "all"]
    made = desk.said("assemble", *both)["bundle"]
    (told,) = desk.said("list")["sets"]
    assert (told["digest"], told["encoder"], told["faces"]) == (made, desk.encoder, "all")
    assert made[:12] in desk.run("list")[1]


def test_doctor_finds_every_model_of_such_a_bundle(desk: Desk) -> None:
    both = ["--generator", desk.generator, "--encoder", desk.encoder, "--faces", "all"]
    desk.said("promote", desk.said("assemble", *both)["bundle"], "--by", "ann")
    command.app(["--store", str(desk.store), "doctor", "--json"])
    checks = json.loads(desk.capsys.readouterr().out.splitlines()[-1])["checks"]
    (said,) = [check for check in checks if check["name"] == "bundle"]
    assert said["ok"] and "missing: nothing" in said["found"]


def test_what_is_no_weight_file_of_others(desk: Desk) -> None:
    own = desk.store / "models" / desk.generator / "weights.bin"
    assert "a model of this project" in desk.refused("inspect", str(own))
    assert "Found: a folder" in desk.refused("inspect", str(desk.folder))
    text = desk.refused("inspect", "s3://key:secret@bucket/x.pt")
    assert "holds credentials" in text and "secret@" not in text
    weight_makers.nvidia_pickle(desk.folder / "n.pkl", base=512, top=16, style_dim=DIM, depth=2)
    half = desk.folder / "half.pkl"
    half.write_bytes((desk.folder / "n.pkl").read_bytes()[:20000])
    assert "fetch the file again" in desk.refused("inspect", str(half))
    assert "--flavour" in _without_flavour(desk)
    assert "equal to 1. See `sdflow" in desk.refused("import", str(half), "--iterations", "0")


def _without_flavour(desk: Desk) -> str:
    content = encoder_makers.encoder_content(encoder_makers.small_encoder(10), encoder_type=None)
    torch.save(content, desk.folder / "no.pt")
    return desk.refused("import", str(desk.folder / "no.pt"))


def test_a_generator_with_a_mapping_needs_no_prior(desk: Desk) -> None:
    bundle = assembled(desk.models, {"generator": desk.generator, "encoder": desk.encoder})
    networks = Networks(desk.models, bundle)
    codes = networks.people(50, torch.Generator().manual_seed(1), 0.5)
    again = networks.people(50, torch.Generator().manual_seed(1), 1.0)
    mean = networks.generator.mean_w
    assert codes.shape == (50, 10, DIM) and torch.allclose((again - mean) * 0.5, codes - mean, atol=1e-4)
    assert torch.allclose(again, again[:, :1].expand_as(again), atol=1e-5) and again.std() > 0.1
    config = EditorTraining(prior_samples=5)
    assert len(make_training_set(networks, codes[:2], config).codes) == 7
    lacking = install_embedded(desk.models.store).model_copy(update={"prior": None})
    with pytest.raises(ContractError, match="no prior"):
        Networks(desk.models, lacking).people(2, torch.Generator(), 1.0)
