"""The original's files: read as tensors only, told apart by shapes, refused by name, written bit for bit."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdflow_core.faces.checkpoint import load_model, save_model
from sdflow_core.faces.resnet import ResNetConfig, ResNetScorer
from sdflow_core.method.paper import PaperFlow, PaperFlowConfig
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.sdflow_files import (
    read_flow,
    read_semantic_encoder,
    write_flow,
    write_semantic_encoder,
)

SMALL = PaperFlowConfig(width=8)
FIRST = "chain.1.odefunc.diffeq.layers.0."


def _file(state: Mapping[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer, **options)
    return buffer.getvalue()


def _small(attributes: int = 3) -> dict[str, Tensor]:
    """State of a flow of width 8 for D = 6, no value equal to another's."""
    torch.manual_seed(0)
    state = PaperFlow(2, 6, attributes, SMALL).state_dict()
    return {name: torch.rand(value.shape) + 0.1 for name, value in state.items()}


def _read(data: bytes, **options: Any) -> PaperFlow:
    return read_flow(data, rows=2, dim=6, config=SMALL, **options)


@pytest.mark.parametrize(("k", "parameters"), [(3, 1_605_633), (17, 1_691_649), (40, 1_832_961)])
def test_published_sizes_are_told_from_the_file(k: int, parameters: int) -> None:
    torch.manual_seed(0)
    flow = read_flow(_file(PaperFlow(18, 512, k).state_dict()))
    assert (flow.rows, flow.dim, flow.attributes) == (18, 512, k)
    assert sum(p.numel() for p in flow.parameters()) == parameters
    assert not flow.training and not any(p.requires_grad for p in flow.parameters())


def test_written_and_read_is_bit_exact(tmp_path: Path) -> None:
    state = _small()
    data = write_flow(_read(_file(state)))
    path = tmp_path / "prior-0010000"
    path.write_bytes(data)
    back = read_flow(path, rows=2, dim=6, config=SMALL).state_dict()
    plain = torch.load(io.BytesIO(data), weights_only=True)
    assert set(plain) == set(back) == set(state)
    for name, value in state.items():
        assert torch.equal(back[name], value) and torch.equal(plain[name], value)
    w, s = torch.randn(3, 2, 6), torch.rand(3, 3)
    a, b = _read(_file(state)), read_flow(str(path), rows=2, dim=6, config=SMALL)
    assert torch.equal(a.to_base(w, s), b.to_base(w, s))
    assert data == write_flow(b)  # one flow, one file


@pytest.mark.parametrize("wrap", ["module", "state_dict", "legacy", "half"])
def test_known_dresses_of_the_file_are_taken_off(wrap: str) -> None:
    state = _small()
    data = {
        "module": _file({f"module.{name}": value for name, value in state.items()}),
        "state_dict": _file({"state_dict": state}),
        "legacy": _file(state, _use_new_zipfile_serialization=False),
        "half": _file({name: value.half() for name, value in state.items()}),
    }[wrap]
    back = _read(data).state_dict()
    for name, value in state.items():
        assert torch.equal(back[name], value.half().float() if wrap == "half" else value)
        assert back[name].dtype == torch.float32


def test_other_sizes_are_named() -> None:
    data = _file(_small())
    for options, said in (
        ({"rows": 2, "dim": 6, "config": PaperFlowConfig(width=9)}, "width 9.*width 8"),
        ({"rows": 2, "dim": 6, "config": PaperFlowConfig(width=8, depth=5)}, "layers 5.*layers 6"),
        ({"rows": 2, "dim": 7, "config": SMALL}, "D 7.*D 6"),
        ({"rows": 2, "dim": 6, "config": SMALL, "attributes": 5}, "attributes 5.*attributes 3"),
        ({}, "D 512, width 512.*D 6, width 8"),
    ):
        with pytest.raises(ContractError, match=said):
            read_flow(data, **options)


def test_every_tensor_that_does_not_fit_is_named() -> None:
    state = _small()
    del state["chain.2.running_var"]
    state["chain.3.weight"] = torch.zeros(6)
    state["chain.0.bias"] = torch.zeros(5)
    with pytest.raises(ContractError) as caught:
        _read(_file(state))
    for said in (
        "chain.2.running_var [6] is missing",
        "chain.3.weight [6] is unexpected",
        "chain.0.bias is [5], expected [6]",
    ):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (FIRST + "_layer.weight", float("nan"), r"_layer.weight \[8, 6\] has values that are not finite"),
        ("chain.0.running_mean", float("inf"), r"chain.0.running_mean \[6\] has values that are not finite"),
        ("chain.2.running_var", -1.0, r"chain.2.running_var \[6\] has negative variances"),
    ],
)
def test_values_that_cannot_be_weights_are_refused(name: str, value: float, said: str) -> None:
    state = _small()
    state[name].view(-1)[1] = value
    with pytest.raises(ContractError, match=said):
        _read(_file(state))


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sparse_coo", "_rebuild_sparse_tensor"),
        ("sparse_csr", "_rebuild_sparse_tensor"),
        ("quantized", "_rebuild_qtensor"),
        ("meta", "_rebuild_meta_tensor"),
    ],
)
def test_tensors_that_are_not_stored_whole_are_refused_by_their_kind(kind: str, said: str) -> None:
    """The reader stops before there is a state dict, so that it names what the file asks for."""
    state: dict[str, Any] = _small()
    name = f"{FIRST}_layer.weight"
    dress = {
        "sparse_coo": lambda value: value.to_sparse(),
        "sparse_csr": lambda value: value.to_sparse_csr(),
        "quantized": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        "meta": lambda value: value.to("meta"),
    }
    state[name] = dress[kind](state[name])
    with pytest.raises(ContractError) as told:
        _read(_file(state))
    assert said in str(told.value) and "neither a tensor nor a plain value" in str(told.value)


def test_a_file_with_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trap, path = tmp_path / "ran", tmp_path / "prior-0010000"
    for data in (_file({**_small(), "x": _Bomb(trap)}), pickle.dumps(_Bomb(trap))):
        path.write_bytes(data)
        for read in (read_flow, read_semantic_encoder):
            with pytest.raises(ContractError, match="prior-0010000"):
                read(path)
    assert not trap.exists()
    pickle.loads(data)  # it would have
    assert trap.exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "a list", "numbers", "twice", "absent"])
def test_damaged_files_are_refused_in_words(damage: str, tmp_path: Path) -> None:
    state, path = _small(), tmp_path / "prior-0000001"
    data = {
        "truncated": _file(state)[:2000],
        "empty": b"",
        "text": b"not a model",
        "twice": _file({**state, "module.chain.0.bias": state["chain.0.bias"]}),
        "numbers": _file({"chain.0.bias": 3.0}),
    }.get(damage)
    if damage == "a list":
        buffer = io.BytesIO()
        torch.save([torch.zeros(2)], buffer)
        data = buffer.getvalue()
    if data is not None:
        path.write_bytes(data)
    for read in (read_flow, read_semantic_encoder):
        with pytest.raises(ContractError, match="prior-0000001"):
            read(path)


def test_the_two_files_are_not_taken_for_each_other() -> None:
    network = ResNetScorer(ResNetConfig(attributes=("a",)))
    with pytest.raises(ContractError, match="not a flow of the original"):
        read_flow(_file(network.state_dict()))
    with pytest.raises(ContractError, match="not a semantic encoder of the original"):
        read_semantic_encoder(_file(_small()))


def _resnet_state(depth: int, k: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ResNet with k outputs, by its own rules."""
    wanted: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            wanted[f"{name}.{part}"] = (channels,)
        wanted[f"{name}.num_batches_tracked"] = ()

    wanted["conv1.weight"] = (64, 3, 7, 7)
    norm("bn1", 64)
    before, growth = 64, 1 if depth == 34 else 4
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        width = 32 * 2**stage
        for block in range(blocks):
            name, after = f"layer{stage}.{block}", width * growth
            if depth == 34:
                convolutions = [(before, width, 3), (width, width, 3)]
            else:
                convolutions = [(before, width, 1), (width, width, 3), (width, after, 1)]
            for i, (a, b, side) in enumerate(convolutions, start=1):
                wanted[f"{name}.conv{i}.weight"] = (b, a, side, side)
                norm(f"{name}.bn{i}", b)
            if block == 0 and before != after:
                wanted[f"{name}.downsample.0.weight"] = (after, before, 1, 1)
                norm(f"{name}.downsample.1", after)
            before = after
    wanted["fc.weight"], wanted["fc.bias"] = (k, before), (k,)
    return {f"backbone.{name}": shape for name, shape in wanted.items()}


def _resnet(state: Mapping[str, Tensor], depth: int, x: Tensor) -> Tensor:
    """The network once more, from its names alone, in evaluation mode."""

    def norm(y: Tensor, name: str) -> Tensor:
        weight, bias, mean, var = (
            state[f"backbone.{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return F.batch_norm(y, mean, var, weight, bias, eps=1e-5)

    def convolve(y: Tensor, name: str, stride: int) -> Tensor:
        weight = state[f"backbone.{name}.weight"]
        return F.conv2d(y, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.max_pool2d(norm(convolve(x, "conv1", 2), "bn1").relu(), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            count, strided = (2, 1) if depth == 34 else (3, 2)
            y = x
            for i in range(1, count + 1):
                y = norm(convolve(y, f"{name}.conv{i}", stride if i == strided else 1), f"{name}.bn{i}")
                y = y.relu() if i < count else y
            if f"backbone.{name}.downsample.0.weight" in state:
                x = norm(convolve(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (x + y).relu()
    return F.linear(x.mean((2, 3)), state["backbone.fc.weight"], state["backbone.fc.bias"])


@pytest.mark.parametrize(("depth", "parameters"), [(34, 21_284_672 + 3 * 513), (50, 23_508_032 + 3 * 2049)])
def test_semantic_encoder_of_either_depth(depth: int, parameters: int) -> None:
    rng = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, shape in _resnet_state(depth, 3).items():
        spread = (1.0 / max(1, torch.Size(shape[1:]).numel())) ** 0.5
        state[name] = torch.randn(shape, generator=rng) * spread
        if len(shape) == 1:
            state[name] = 0.5 + torch.rand(shape, generator=rng)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
    encoder = read_semantic_encoder(_file({f"module.{name}": value for name, value in state.items()}))
    assert encoder.attributes == ("eyeglasses", "male", "young")
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    data = write_semantic_encoder(encoder)
    back = torch.load(io.BytesIO(data), weights_only=True)
    assert set(back) == set(state) and all(torch.equal(back[n], v) for n, v in state.items())
    picture = torch.rand(1, 3, 64, 64, generator=rng) * 2 - 1
    with torch.no_grad():
        s = encoder(picture)
        large = F.interpolate(picture, (256, 256), mode="bilinear", antialias=True)
        again = _resnet(state, depth, large)
        assert torch.allclose(encoder.logits(picture), again, atol=1e-4 * float(again.abs().max()))
        assert s.shape == (1, 3) and torch.equal(encoder(large), s)  # any size is scored at 256 px


def test_semantic_encoder_refuses_what_it_cannot_name() -> None:
    torch.manual_seed(0)
    network = ResNetScorer(ResNetConfig(attributes=("a", "b")))
    data = _file(network.state_dict())
    with pytest.raises(ContractError, match="2 names"):
        read_semantic_encoder(data)
    with pytest.raises(ContractError, match="2 names"):
        read_semantic_encoder(data, ("a", "b", "c"))
    assert read_semantic_encoder(data, ("x", "y")).attributes == ("x", "y")
    state = dict(network.state_dict())
    state["backbone.layer3.5.bn2.bias"] = torch.full((256,), float("nan"))
    with pytest.raises(ContractError, match=r"layer3\.5\.bn2\.bias \[256\] has values that are not finite"):
        read_semantic_encoder(_file(state), ("a", "b"))
    deeper = dict(network.state_dict())
    deeper["backbone.fc.weight"] = torch.zeros(2, 1024)
    with pytest.raises(ContractError, match="1024 features"):
        read_semantic_encoder(_file(deeper), ("a", "b"))
    with pytest.raises(ContractError, match="RGB|pictures"):
        network.logits(torch.zeros(1, 1, 8, 8))


def test_an_imported_semantic_encoder_travels_in_our_own_files() -> None:
    torch.manual_seed(0)
    network = ResNetScorer(ResNetConfig(attributes=("a", "b"), resolution=32)).eval()
    again = load_model(save_model(network), expect="resnet_scorer")
    picture = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(SemanticEncoder(again)(picture), network.scores(picture))
