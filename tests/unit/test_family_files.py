"""Each family as a file on disk: read safely, told apart from all the others, and made into its network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdflow_core.records.errors import ContractError
from sdflow_core.weights import classifier_files, direction_files, encoder_files, identity_files
from sdflow_core.weights.reading import plain_of, read_weights, tensors_of
from tests import encoder_makers as makers

pytestmark = pytest.mark.weights

FAMILIES: tuple[Any, ...] = (encoder_files, identity_files, classifier_files, direction_files)


def _encoder(kind: str, restyle: bool = False) -> dict[str, Any]:
    return makers.encoder_content(
        makers.small_encoder(4, restyle=restyle),
        encoder_type=kind,
        latent_avg=torch.ones(4, 32),
        decoder={"to_rgbs.0.bias": torch.zeros(1, 3, 1, 1)},
        stylegan_size=8,
        checkpoint_path=None,
        lr=1e-4,
        progressive_steps=[0, 20_000],
    )


def _contents() -> dict[str, Callable[[], Any]]:
    return {
        "e4e": lambda: _encoder("Encoder4Editing"),
        "psp": lambda: _encoder("GradualStyleEncoder"),
        "restyle-e4e": lambda: _encoder("ProgressiveBackboneEncoder", True),
        "restyle-psp": lambda: _encoder("BackboneEncoder", True),
        "ir-se-50": lambda: makers.draw(makers.arcface(makers.SMALL, 8, 2, 16)),
        "iresnet50": lambda: makers.draw(makers.iresnet(makers.SMALL, small=2, size=16)),
        "r34-a40-age": lambda: makers.draw(makers.classifier(34, 4)),
        "r50-a40-age": lambda: {
            f"module.{name}": value for name, value in makers.draw(makers.classifier(50, 2)).items()
        },
        "directions": lambda: torch.ones(1, 32),
        "ganspace": lambda: {
            "comp": torch.ones(3, 1, 32),
            "mean": torch.zeros(1, 32),
            "std": torch.ones(3),
        },
    }


def _options(kind: str) -> dict[str, Any]:
    return {"rows": 4, "encoder_digest": "e"} if kind == "directions" else {}


@pytest.mark.parametrize("family", list(_contents()))
def test_a_file_of_each_family_is_that_family_and_no_other(family: str, tmp_path: Path) -> None:
    path = tmp_path / "no name says what this is"
    torch.save(_contents()[family](), path)
    content = read_weights(path).content
    tensors, plain = tensors_of(content), plain_of(content)
    said = {module: module.recognise(tensors, plain) for module in FAMILIES}
    (module,) = [module for module, found in said.items() if found is not None]
    assert said[module].family == family
    assert module.load(tensors, plain, where=str(path), **_options(said[module].kind)) is not None


def test_an_encoder_from_a_file_gives_the_codes_of_its_tensors(tmp_path: Path) -> None:
    content = _encoder("Encoder4Editing")
    torch.save(content, tmp_path / "e.pt")
    read = read_weights(tmp_path / "e.pt").content
    found = encoder_files.load(tensors_of(read), plain_of(read))
    same = encoder_files.load(*makers.split(content))
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(found.encode(images), same.encode(images))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_direction_comes_as_numpy_array_too(dtype: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(1, 32)).astype(dtype)
    np.save(tmp_path / "age.npy", array)
    tensors = tensors_of(read_weights(tmp_path / "age.npy").content)
    editor = direction_files.load(tensors, {}, rows=4, encoder_digest="e", names=("age",))
    w: Tensor = torch.zeros(1, 4, 32)
    moved = editor.edit(w, None, torch.zeros(1, 1), torch.ones(1, 1)).w_plus
    torch.testing.assert_close(moved, torch.from_numpy(array).float().expand(1, 4, 32))


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    state = makers.draw(makers.arcface(makers.SMALL, 8, 1, 16))
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(half, tmp_path / "half.pth")
    network = identity_files.load(tensors_of(read_weights(tmp_path / "half.pth").content), {})
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    faces = torch.rand(1, 3, 16, 16)
    whole = identity_files.load(state, {}).embed(faces)
    assert float((network.embed(faces) * whole).sum()) > 0.999


def test_every_refusal_names_its_file() -> None:
    for module in FAMILIES:
        options = _options("directions") if module is direction_files else {}
        with pytest.raises(ContractError, match=r"mine\.pt"):
            module.load({"x.y": torch.zeros(2)}, {}, where="mine.pt", **options)
