"""Filling a network with the tensors of a file: everything that does not fit is named, nothing is skipped.

The network may be built on the `meta` device: it takes over the tensors of the file, so that a file of 1 GB
is held once and no weight is drawn only to be overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sdflow_core.records.errors import ContractError

__all__ = ["count_parameters", "count_stages", "fill", "numbers", "part"]

# BatchNorm's own state: it is stored beside the parameters but no gradient ever reaches it
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_COUNTER = "num_batches_tracked"


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, which is removed once and only at the beginning of a name.

    Example:
        >>> list(part({"encoder.encoder.a": torch.zeros(1), "b": torch.zeros(1)}, "encoder."))
        ['encoder.a']
    """
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def count_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Numbers that were learned; BatchNorm's statistics and counters are not among them."""
    return sum(value.numel() for name, value in tensors.items() if not name.endswith(_BUFFERS))


def numbers(names: Iterable[str], pattern: str) -> list[int]:
    """The numbers that a pattern with one group finds at the beginning of the names, each once, ascending.

    Numbers of more than six digits are passed over: no file has so many layers, only a malicious one.

    Example:
        >>> numbers(["body.0.weight", "body.10.weight", "body.0.bias"], "body[.]([0-9]+)[.]")
        [0, 10]
    """
    return sorted(
        {int(found[1]) for name in names if (found := re.match(pattern, name)) and len(found[1]) < 7}
    )


def count_stages(depths: Iterable[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths of the stages of a backbone and how many units each has, from the width of every unit in order.

    Example:
        >>> count_stages([64, 64, 128, 128, 128])
        ((64, 128), (2, 3))
    """
    widths: list[int] = []
    counts: list[int] = []
    for depth in depths:
        if not widths or widths[-1] != depth:
            widths.append(depth)
            counts.append(0)
        counts[-1] += 1
    return tuple(widths), tuple(counts)


def fill(network: nn.Module, tensors: Mapping[str, Tensor], *, what: str, where: str) -> None:
    """Fill a network from a file and leave it in evaluation mode, in float32, without gradients.

    BatchNorm's `num_batches_tracked` matters to training alone. Files from before it existed have none at
    all: then, and only then, it is taken as 0.

    Args:
        network: On any device, also `meta`.
        tensors: By the names of the network. They are taken over, not copied, where they are float32.
        what: What the file is, for the message.
        where: The file, for the message.

    Raises:
        ContractError: Tensors that are missing, unexpected, of another shape or not finite, or negative
            variances: every single one is named with its shape.
    """
    wanted = network.state_dict()
    given = dict(tensors)
    if not any(name.endswith(_COUNTER) for name in given):
        given |= {name: torch.zeros((), dtype=torch.int64) for name in wanted if name.endswith(_COUNTER)}
    wrong = [f"{name} {list(value.shape)} is missing" for name, value in wanted.items() if name not in given]
    for name, value in given.items():
        if name not in wanted:
            wrong.append(f"{name} {list(value.shape)} is unexpected")
        elif value.shape != wanted[name].shape:
            wrong.append(f"{name} is {list(value.shape)}, expected {list(wanted[name].shape)}")
        elif value.is_complex() or (value.is_floating_point() and not bool(torch.isfinite(value).all())):
            wrong.append(f"{name} {list(value.shape)} has values that are not finite")
        elif name.endswith("running_var") and bool((value < 0).any()):
            wrong.append(f"{name} {list(value.shape)} has negative variances")
    if wrong:
        raise ContractError(
            f"{len(wrong)} tensors do not fit",
            expected=f"exactly the {len(wanted)} tensors of {what}",
            found="; ".join(wrong),
            where=where,
        )
    network.load_state_dict(
        {name: value.detach().to(wanted[name].dtype) for name, value in given.items()}, assign=True
    )
    network.eval().requires_grad_(False)
