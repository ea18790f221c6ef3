"""What the layouts of StyleGAN2 files have in common: which layer is which, and how a generator is filled.

The layouts differ in names, and in shapes by axes of length 1; numbers are never changed. A family describes
its layout as a table of `Place`s, one for every tensor of our `Generator`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdflow_core.faces.generator import Generator, GeneratorConfig, fir_kernel
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.fitting import fill

__all__ = [
    "MOST_BLOCKS",
    "Layer",
    "Place",
    "config_from_channels",
    "empty_generator",
    "estimated_mean_w",
    "filled",
    "layers",
    "mean_w_rows",
]

MOST_BLOCKS = 9  # 2048 px
MEAN_W_DRAWS = 10_000
_FILTER_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Layer:
    """One layer of the generator.

    Attributes:
        ours: Its name in our `Generator`.
        kind: First 4x4 convolution, upsampling convolution, plain convolution, or the one that makes RGB.
        block: -1 at 4 px, 0 at 8 px, and so on.
    """

    ours: str
    kind: Literal["first", "up", "conv", "rgb"]
    block: int

    @property
    def resolution(self) -> int:
        """Side of its output in pixels."""
        return 8 * 2**self.block if self.block >= 0 else 4


@dataclass(frozen=True)
class Place:
    """Where one of our tensors lies in a file: its name there, and its shape."""

    name: str
    shape: tuple[int, ...]


def layers(config: GeneratorConfig) -> Iterator[Layer]:
    """The layers in the order in which a picture passes them."""
    yield Layer("first", "first", -1)
    yield Layer("first_rgb", "rgb", -1)
    for block in range(config.num_rows // 2 - 1):
        yield Layer(f"up_convs.{block}", "up", block)
        yield Layer(f"convs.{block}", "conv", block)
        yield Layer(f"rgbs.{block}", "rgb", block)


def config_from_channels(
    channels: Mapping[int, int], style_dim: int, depth: int, conv_clamp: float | None = None
) -> GeneratorConfig | None:
    """The member of the family with these feature channels by resolution; None where there is none.

    Example:
        >>> table = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64}
        >>> config_from_channels(table, 512, 8).channel_base
        16384
    """
    top = max(channels)
    config = GeneratorConfig(
        resolution=top,
        style_dim=style_dim,
        channel_base=channels[top] * top,
        channel_max=max(channels.values()),
        mapping_layers=depth,
        conv_clamp=conv_clamp,
    )
    wanted = {4 * 2**i: config.channels(4 * 2**i) for i in range(config.num_rows // 2)}
    return config if dict(channels) == wanted else None


def empty_generator(config: GeneratorConfig) -> Generator:
    """A generator that has shapes and no weights yet."""
    with torch.device("meta"):
        generator = Generator(config)
    generator.fir = fir_kernel()  # constant, so no file brings it
    return generator


def mean_w_rows(mean: Tensor, rows: int, dim: int, where: str) -> Tensor:
    """A mean w of any shape that is in use, as [L, D] float32.

    Args:
        mean: [D], [1, D], [L, D] or [1, L, D].
        rows: L.
        dim: D.
        where: The file, for messages.

    Raises:
        ContractError: Of another generator.
    """
    flat = mean.detach().float()
    flat = flat[0] if flat.ndim == 3 and flat.shape[0] == 1 else flat
    if (
        flat.ndim not in (1, 2)
        or flat.shape[-1] != dim
        or (flat.ndim == 2 and flat.shape[0] not in (1, rows))
    ):
        raise ContractError(
            "the mean w of another generator",
            expected=f"[{dim}], [1, {dim}], [{rows}, {dim}] or [1, {rows}, {dim}]",
            found=list(mean.shape),
            where=where,
        )
    return flat.expand(rows, dim).contiguous()


@torch.no_grad()
def estimated_mean_w(generator: Generator, *, seed: int = 0) -> Tensor:
    """The mean of the mapping network's w over 10,000 draws of z, the same in every call: [L, D].

    Raises:
        ContractError: This generator has no mapping network.
    """
    if generator.mapping is None:
        raise ContractError(
            "a generator without mapping network and without its mean w", expected="one of the two"
        )
    rng = torch.Generator().manual_seed(seed)
    dim = generator.config.style_dim
    total = torch.zeros(dim, dtype=torch.float64)
    for start in range(0, MEAN_W_DRAWS, 1000):
        count = min(1000, MEAN_W_DRAWS - start)
        total += generator.mapping(torch.randn(count, dim, generator=rng)).double().sum(dim=0)
    return (total / MEAN_W_DRAWS).float().expand(generator.num_rows, dim).contiguous()


def filled(
    config: GeneratorConfig,
    table: Mapping[str, Place],
    tensors: Mapping[str, Tensor],
    mean_w: Tensor | None,
    *,
    filters: Mapping[str, float],
    what: str,
    where: str,
) -> Generator:
    """A generator with the tensors of a file.

    Args:
        config: Which member of the family.
        table: Where each of our tensors lies; all but `mean_w`.
        tensors: Of the file, by its names.
        mean_w: What the file says of it; None estimates it.
        filters: Names that hold a resampling filter if they are there, and the sum it must have.
        what: What the file is, for messages.
        where: The file, for messages.

    Raises:
        ContractError: Every tensor that is missing, unexpected, of another shape or not finite, named with
            its shape; another resampling filter.
    """
    generator = empty_generator(config)
    ours = {place.name: name for name, place in table.items()}
    wrong = [
        f"{place.name} {list(place.shape)} is missing"
        for place in table.values()
        if place.name not in tensors
    ]
    state: dict[str, Tensor] = {}
    shapes = {name: value.shape for name, value in generator.state_dict().items()}
    for name, value in tensors.items():
        if name in filters:
            _check_filter(name, value, filters[name], where)
        elif name not in ours:
            wrong.append(f"{name} {list(value.shape)} is unexpected")
        elif tuple(value.shape) != table[ours[name]].shape:
            wrong.append(f"{name} is {list(value.shape)}, expected {list(table[ours[name]].shape)}")
        else:
            state[ours[name]] = value.detach().reshape(shapes[ours[name]])
    if wrong:
        raise ContractError(
            f"{len(wrong)} tensors do not fit",
            expected=f"exactly the {len(table)} tensors of {what}, and its filters",
            found="; ".join(wrong),
            where=where,
        )
    state["mean_w"] = torch.zeros(config.num_rows, config.style_dim)
    if mean_w is not None:
        state["mean_w"] = mean_w_rows(mean_w, config.num_rows, config.style_dim, where)
    fill(generator, state, what=what, where=where)
    if mean_w is None:
        generator.mean_w = estimated_mean_w(generator)
    return generator


def _check_filter(name: str, value: Tensor, total: float, where: str) -> None:
    wanted = fir_kernel() * (total / float(fir_kernel().sum()))
    if value.shape != wanted.shape or not torch.allclose(
        value.detach().float(), wanted, rtol=0, atol=_FILTER_TOLERANCE
    ):
        raise ContractError(
            "a generator with another resampling filter",
            expected=f"outer([1, 3, 3, 1]), of sum {total:g}",
            found=f"{name} {list(value.shape)}" + ("" if value.numel() > 16 else f" {value.tolist()}"),
            where=where,
        )
