"""One door for weight files: what a file is, and the network in it, by its tensors, never by its file name.

Each family has a file of its own beside this one. A family is asked whether it knows the names and shapes;
the first that does describes the file.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sdflow_core.faces.generator import Generator
from sdflow_core.method.paper import PaperFlow
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.describing import Described, Kind
from sdflow_core.weights.fitting import part
from sdflow_core.weights.reading import WeightFile, plain_of, read_weights, tensors_of

__all__ = [
    "Inspection",
    "Opened",
    "inspect",
    "load_attribute_classifier",
    "load_encoder",
    "load_flow",
    "load_generator",
    "load_identity",
    "load_semantic_encoder",
    "open_weights",
]

# In the order in which they are asked: directions last, since any small array may be one.
_FAMILIES = (
    "encoder_files",
    "identity_files",
    "classifier_files",
    "sdflow_files",
    "nvidia_files",
    "stylegan2_files",
    "direction_files",
)
_SHOWN = 8


@dataclass(frozen=True)
class Opened:
    """A weight file that was read and recognised, its network not yet made.

    Attributes:
        file: What was read.
        family: Module of this package that makes its network.
        described: What it is.
        tensors: Its state dict.
        plain: What lies beside it.
    """

    file: WeightFile
    family: str
    described: Described
    tensors: dict[str, Tensor]
    plain: dict[str, Any]

    def load(self, kind: Kind, **options: Any) -> Any:
        """The network, which must be of this kind; a generator may also lie inside an encoder's file.

        Raises:
            ContractError: Another kind, or every tensor that does not fit, with its shape.
        """
        tensors, family, where = self.tensors, self.family, self.file.path
        if kind == "generator" and self.described.kind == "encoder" and (inner := part(tensors, "decoder.")):
            family, tensors = "stylegan2_files", inner
        elif kind != self.described.kind:
            raise _other(kind, self.described, where)
        return _module(family).load(tensors, self.plain, where=where, **options)


def open_weights(path: str | Path) -> Opened:
    """Read a weight file and tell what it is.

    Raises:
        ContractError: Not a weight file, or of no known family; the message names the first of its tensors.
    """
    file = read_weights(path)
    family, described = _recognised(file)
    return Opened(file, family, described, tensors_of(file.content, file.path), plain_of(file.content))


@dataclass(frozen=True)
class Inspection:
    """What a weight file is.

    Attributes:
        path: Where it is.
        container: How it was written: torch, pickle, safetensors, npy or npz.
        sha256: Digest of its bytes.
        size: Bytes.
        described: The network in it.
    """

    path: str
    container: str
    sha256: str
    size: int
    described: Described


def inspect(path: str | Path) -> Inspection:
    """Tell what a weight file is, without making its network.

    Raises:
        ContractError: Not a weight file, or of no known family; the message names the first of its tensors.
    """
    file = read_weights(path)
    described = _recognised(file)[1]
    return Inspection(file.path, file.container, file.sha256, file.size, described)


def load_generator(path: str | Path) -> Generator:
    """The StyleGAN2 generator of a file: rosinality's, NVIDIA's, or the one inside an encoder's file.

    Returns:
        `generator.map(z)` and `generator.synthesize(w_plus [B, L, D]) -> [B, 3, H, W]`.

    Raises:
        ContractError: No such file, or every tensor that does not fit, with its shape.
    """
    return open_weights(path).load("generator")


def load_encoder(path: str | Path, **options: Any) -> Any:
    """The encoder of a file: e4e, pSp or ReStyle.

    Args:
        path: The file.
        options: See `encoder_files.load`: `flavour`, `mean_w`, `iterations`.

    Returns:
        `encoder.encode(images) -> w_plus`.

    Raises:
        ContractError: No such file, or every tensor that does not fit, with its shape.
    """
    return _load("encoder", path, options)


def load_identity(path: str | Path, **options: Any) -> Any:
    """The identity network of a file: IR-SE-50 or iresnet; options as `identity_files.load` has them.

    Raises:
        ContractError: No such file, or every tensor that does not fit, with its shape.
    """
    return _load("identity", path, options)


def load_attribute_classifier(path: str | Path, **options: Any) -> Any:
    """The 40 + 6 attribute classifier of a file; options as `classifier_files.load` has them.

    Raises:
        ContractError: No such file, or every tensor that does not fit, with its shape.
    """
    return _load("attribute_classifier", path, options)


def load_flow(path: str | Path, *, rows: int = 18, dim: int | None = None) -> PaperFlow:
    """The flow of a file of SDFlow or StyleFlow.

    Args:
        path: The file.
        rows: L of the generator; not in the file.
        dim: D that is expected; None takes what the file has.

    Returns:
        `flow.to_base(w_plus, s)` and `flow.from_base(z, s)`.

    Raises:
        ContractError: No such file, or every tensor that does not fit, with its shape.
    """
    return _load("flow", path, {"rows": rows, "dim": dim})


def load_semantic_encoder(path: str | Path, *, attributes: Sequence[str] | None = None) -> Any:
    """The semantic encoder of a file of SDFlow; `attributes` names its outputs, see `sdflow_files`.

    Raises:
        ContractError: No such file, or every tensor that does not fit, with its shape.
    """
    return _load("semantic_encoder", path, {"attributes": attributes})


def _load(kind: Kind, path: str | Path, options: Mapping[str, Any]) -> Any:
    return open_weights(path).load(kind, **options)


def _module(family: str) -> Any:
    # only the family that is asked for is imported: each brings networks along
    return importlib.import_module(f"sdflow_core.weights.{family}")


def _recognised(file: WeightFile) -> tuple[str, Described]:
    """The family that knows the file, and what it says of it."""
    tensors, plain = tensors_of(file.content, file.path), plain_of(file.content)
    for family in _FAMILIES:
        described = _module(family).recognise(tensors, plain)
        if described is not None:
            return family, described
    own = plain.get("__metadata__")
    if isinstance(own, Mapping) and "sdflow" in own:
        raise ContractError(
            "a model of this project, converted already",
            expected="a weight file of another project",
            found="safetensors with a header of this project",
            where=file.path,
            todo="it stands in `sdflow models list` of its store; `sdflow models promote embedded` puts the "
            "embedded models in force",
        )
    raise ContractError(
        "a weight file of no known family",
        expected="a generator, encoder, identity network, attribute classifier, flow, semantic encoder or "
        "directions",
        found=_in_words(tensors),
        where=file.path,
    )


def _other(kind: str, described: Described, where: str) -> ContractError:
    return ContractError(
        "a weight file of another kind",
        expected=kind.replace("_", " "),
        found=f"{described.kind.replace('_', ' ')} ({described.family})",
        where=where,
    )


def _in_words(tensors: Mapping[str, Tensor]) -> str:
    words = "; ".join(f"{name[:80]} {list(value.shape)}" for name, value in list(tensors.items())[:_SHOWN])
    more = len(tensors) - _SHOWN
    return (words + (f"; and {more} more" if more > 0 else "")) or "no tensors"
