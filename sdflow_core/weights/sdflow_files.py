"""The original's files: `prior-XXXXXXX` (the flow) and `labeldist-XXXXXXX` (the semantic encoder).

Both are bare state dicts written by `torch.save`. Read as plain tensors (`weights.reading`): a file that
holds anything else is refused, and nothing in it ever runs. StyleFlow's `modellarge10k.pt` has the layout of
the flow with 17 conditions. Shapes are told from the file; what differs from the expected layout is named
with both shapes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdflow_core.faces.resnet import Depth, ResNetConfig, ResNetScorer
from sdflow_core.method.paper import PaperFlow, PaperFlowConfig
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.bounds import shown
from sdflow_core.weights.describing import Described
from sdflow_core.weights.fitting import count_parameters, fill
from sdflow_core.weights.reading import plain_of, read_weight_bytes, read_weights, tensors_of

Source = str | Path | bytes

ROWS, DIM = 18, 512  # of the generator that the original edits
RELEASED_ATTRIBUTES = ("eyeglasses", "male", "young")  # CelebA's 15, 20, 39: those of the released weights

_LAYER = "chain.1.odefunc.diffeq.layers."
_FLOW_BUFFERS = ("step", "running_mean", "running_var", "_num_evals")
_SHOWN = 8  # tensors named in a message that only says what was found instead
_LICENCE = "the original publishes no licence; StyleFlow is CC BY-NC-SA 4.0"


def read_flow(
    source: Source,
    *,
    rows: int = ROWS,
    dim: int = DIM,
    attributes: int | None = None,
    config: PaperFlowConfig | None = None,
) -> PaperFlow:
    """Read a `prior-XXXXXXX` file, or StyleFlow's.

    Args:
        source: Path, or the bytes of the file.
        rows: L; not in the file, and no parameter depends on it.
        dim: D that is expected.
        attributes: A that is expected; None takes what the file has.
        config: Expected sizes, and the solver of the flow; the published ones by default.

    Returns:
        The flow in evaluation mode, without gradients.

    Raises:
        ContractError: Not such a file; another D, width, number of layers or of attributes; a tensor that is
            missing, unexpected, of another shape or not finite.
    """
    state, where = _read(source)
    return _flow(state, where, rows, dim, attributes, config or PaperFlowConfig())


def _flow(
    state: Mapping[str, Tensor],
    where: str,
    rows: int,
    dim: int,
    attributes: int | None,
    config: PaperFlowConfig,
) -> PaperFlow:
    found = _flow_sizes(state, where)
    wanted = {"D": dim, "width": config.width, "layers": config.depth}
    wanted["attributes"] = found["attributes"] if attributes is None else attributes
    if found != wanted:
        raise ContractError(
            "a flow of other sizes",
            expected=_in_words(wanted),
            found=_in_words(found),
            where=where,
            todo="name the sizes of the file when reading it, or use the file that belongs to this generator",
        )
    flow = PaperFlow(rows, dim, found["attributes"], config)
    fill(flow, state, what="a flow of the original", where=where)
    return flow


def recognise(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Described | None:
    """Tell a flow or a semantic encoder of the original from names and shapes; works on `meta` tensors.

    Args:
        tensors: The state dict.
        plain: What lies beside it; nothing is read from it.

    Returns:
        What it is, or None for something else. L of a flow is in no shape, so `layers` is None.
    """
    del plain
    head = tensors.get("backbone.fc.weight")
    if head is not None and head.ndim == 2 and "backbone.conv1.weight" in tensors:
        return Described(
            kind="semantic_encoder",
            family="sdflow-labeldist",
            resolution=256,
            depth=_depth(tensors, head.shape[1], "the file"),
            attributes=head.shape[0],
            parameters=count_parameters(tensors),
            notes=("the names of its outputs are not in the file",),
            licence=_LICENCE,
        )
    if f"{_LAYER}0._layer.weight" not in tensors or f"{_LAYER}0._hyper_gate.weight" not in tensors:
        return None
    sizes = _flow_sizes(tensors, "the file")
    notes = (
        "the rows of the generator are not in the file",
        "the order of its conditions is not in the file",
    )
    return Described(
        kind="flow",
        family="sdflow-cnf",
        style_dim=sizes["D"],
        depth=sizes["layers"],
        attributes=sizes["attributes"],
        parameters=sum(v.numel() for name, v in tensors.items() if not name.endswith(_FLOW_BUFFERS)),
        notes=notes,
        licence=_LICENCE,
    )


def load(
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    *,
    rows: int = ROWS,
    dim: int | None = None,
    attributes: Sequence[str] | None = None,
    where: str = "the file",
) -> PaperFlow | SemanticEncoder:
    """Make the flow or the semantic encoder of a file, all sizes as the file has them.

    Args:
        tensors: The state dict.
        plain: What lies beside it; nothing is read from it.
        rows: L of the generator, for a flow.
        dim: D that is expected of a flow; None takes what the file has.
        attributes: Names of the outputs of a semantic encoder.
        where: The file, for messages.

    Raises:
        ContractError: As for `read_flow` and `read_semantic_encoder`.
    """
    del plain
    if "backbone.fc.weight" in tensors:
        return _semantic_encoder(tensors, where, attributes)
    sizes = _flow_sizes(tensors, where)
    config = PaperFlowConfig(width=sizes["width"], depth=sizes["layers"])
    return _flow(tensors, where, rows, sizes["D"] if dim is None else dim, None, config)


def write_flow(flow: PaperFlow) -> bytes:
    """The flow as the original's loader reads it."""
    return _write(flow)


def read_semantic_encoder(source: Source, attributes: Sequence[str] | None = None) -> SemanticEncoder:
    """Read a `labeldist-XXXXXXX` file; ResNet-34 or ResNet-50 is told from its shapes.

    Args:
        source: Path, or the bytes of the file.
        attributes: Names of the outputs in their order, which the file does not hold; None is right for three
            outputs only, those of the released weights.

    Returns:
        The semantic encoder in evaluation mode, without gradients; takes RGB of any size in [-1, 1] and
        scores it at 256 px.

    Raises:
        ContractError: Not such a file; another number of attributes; a tensor that is missing, unexpected, of
            another shape or not finite.
    """
    state, where = _read(source)
    return _semantic_encoder(state, where, attributes)


def _semantic_encoder(
    state: Mapping[str, Tensor], where: str, attributes: Sequence[str] | None
) -> SemanticEncoder:
    head = state.get("backbone.fc.weight")
    if head is None or head.ndim != 2:
        raise ContractError(
            "not a semantic encoder of the original",
            expected="backbone.fc.weight [A, 512] (ResNet-34) or [A, 2048] (ResNet-50)",
            found="nothing of that name" if head is None else list(head.shape),
            where=where,
        )
    count, features = head.shape
    depth = _depth(state, features, where)
    names = RELEASED_ATTRIBUTES if attributes is None and count == 3 else tuple(attributes or ())
    if len(names) != count:
        raise ContractError(
            "attributes of the semantic encoder",
            expected=f"{count} names, one for each output",
            found=", ".join(names) or "none",
            where=where,
            todo="name the attributes in the order of the training",
        )
    network = ResNetScorer(ResNetConfig(attributes=names, depth=depth))
    fill(network, state, what=f"a semantic encoder on ResNet-{depth}", where=where)
    return SemanticEncoder(network).eval()


def write_semantic_encoder(encoder: SemanticEncoder) -> bytes:
    """A semantic encoder as the original's loader reads it.

    Raises:
        ContractError: Its network is no ResNet of the original's layout.
    """
    if not isinstance(encoder.network, ResNetScorer):
        raise ContractError(
            "a semantic encoder that the original cannot read",
            expected="a ResNet-34 or ResNet-50",
            found=type(encoder.network).__name__,
        )
    return _write(encoder.network)


def _depth(state: Mapping[str, Tensor], features: int, where: str) -> Depth:
    if features == 512 and "backbone.layer1.0.conv3.weight" not in state:
        return 34
    if features == 2048:
        return 50
    raise ContractError(
        "a semantic encoder of another network",
        expected="ResNet-34 (512 features, two convolutions a block) or ResNet-50 (2048, three)",
        found=f"{features} features",
        where=where,
    )


def _flow_sizes(state: Mapping[str, Tensor], where: str) -> dict[str, int]:
    """D, width, layers and attributes, as the file has them."""
    weight, gate = state.get(f"{_LAYER}0._layer.weight"), state.get(f"{_LAYER}0._hyper_gate.weight")
    if weight is None or gate is None or weight.ndim != 2 or gate.ndim != 2:
        raise ContractError(
            "not a flow of the original",
            expected=f"{_LAYER}0._layer.weight [width, D] and {_LAYER}0._hyper_gate.weight [width, 1 + A]",
            found=", ".join(list(state)[:_SHOWN]) or "no tensors",
            where=where,
        )
    pattern = re.compile(re.escape(_LAYER) + r"(\d+)\.")
    numbers = {int(match[1]) for name in state if (match := pattern.match(name))}
    return {
        "D": weight.shape[1],
        "width": weight.shape[0],
        "layers": max(numbers) + 1,
        "attributes": gate.shape[1] - 1,
    }


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def _read(source: Source) -> tuple[dict[str, Tensor], str]:
    """A file as named tensors, nothing of it executed; gives also what to call it in a message."""
    if isinstance(source, bytes):
        file = read_weight_bytes(source, f"{len(source)} bytes")
    else:
        file = read_weights(source)
    plain = plain_of(file.content)
    if not isinstance(file.content, dict) or plain:
        raise ContractError(
            "not a state dict",
            expected="tensors by name, nothing else",
            found=", ".join(f"{name}: {shown(value)}" for name, value in plain.items())
            or type(file.content).__name__,
            where=file.path,
        )
    return tensors_of(file.content, file.path), file.path


def _write(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    # copies: torch.save would write the whole storage behind a view
    torch.save({k: v.detach().cpu().clone() for k, v in network.state_dict().items()}, buffer)
    return buffer.getvalue()
