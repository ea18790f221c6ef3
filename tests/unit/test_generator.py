"""The generator against a straightforward rebuild of the published formulas, one sample at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdflow_core.faces.generator import Generator, GeneratorConfig
from sdflow_core.records.errors import ContractError

SMALL = GeneratorConfig(resolution=64, style_dim=16, channel_base=512, channel_max=24, mapping_layers=2)


def made(config: GeneratorConfig = SMALL) -> Generator:
    torch.manual_seed(3)
    net = Generator(config).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "noise_strength" in name:
                value.fill_(0.3)
            elif name.endswith("bias"):
                value.add_(0.1 * torch.randn_like(value))
    return net


def fir_up(x: Tensor) -> Tensor:
    """Insert zeros, pad (2, 1), filter with outer([1,3,3,1])/64*4: [C, H, W] -> [C, 2H, 2W]."""
    c, h, w = x.shape
    spread = torch.zeros(c, 2 * h, 2 * w)
    spread[:, ::2, ::2] = x
    return fir(F.pad(spread, (2, 1, 2, 1)))


def fir(x: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps) / 64 * 4
    return torch.stack([F.conv2d(channel[None, None], kernel[None, None])[0, 0] for channel in x])


def styled(layer: torch.nn.Module, x: Tensor, w: Tensor, up: bool) -> Tensor:
    conv = layer.conv  # the weights are scaled per sample, the way the paper writes it
    style = F.linear(w, conv.affine.weight / math.sqrt(len(w)), conv.affine.bias)
    weight = conv.weight / math.sqrt(conv.weight[0].numel()) * style[None, :, None, None]
    weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
    if up:
        y = fir(F.pad(F.conv_transpose2d(x[None], weight.transpose(0, 1), stride=2)[0], (1, 1, 1, 1)))
    else:
        y = F.conv2d(x[None], weight, padding=1)[0]
    y = y + layer.noise * layer.noise_strength + layer.bias[:, None, None]
    return F.leaky_relu(y, 0.2) * math.sqrt(2)


def to_rgb(layer: torch.nn.Module, x: Tensor, w: Tensor) -> Tensor:
    style = F.linear(w, layer.conv.affine.weight / math.sqrt(len(w)), layer.conv.affine.bias)
    weight = layer.conv.weight / math.sqrt(layer.conv.weight.shape[1]) * style[None, :, None, None]
    return F.conv2d(x[None], weight)[0] + layer.bias[:, None, None]


def plain(net: Generator, w: Tensor) -> Tensor:
    """[L, D] -> [3, H, W]."""
    x = styled(net.first, net.const[0], w[0], False)
    rgb = to_rgb(net.first_rgb, x, w[1])
    for b, (up, conv, rgb_layer) in enumerate(zip(net.up_convs, net.convs, net.rgbs, strict=True)):
        x = styled(up, x, w[1 + 2 * b], True)
        x = styled(conv, x, w[2 + 2 * b], False)
        rgb = to_rgb(rgb_layer, x, w[3 + 2 * b]) + fir_up(rgb)
    return rgb


@torch.no_grad()
def test_equals_the_published_formulas() -> None:
    net = made()
    w = torch.randn(3, net.num_rows, 16)
    assert float((net.synthesize(w) - torch.stack([plain(net, row) for row in w])).abs().max()) <= 1e-4


def test_the_full_model_of_the_family_has_its_published_size() -> None:
    with torch.device("meta"):
        net = Generator(GeneratorConfig())
    assert sum(p.numel() for p in net.parameters()) == 30_370_060
    assert net.num_rows == 18


@torch.no_grad()
def test_rows_do_not_depend_on_their_neighbours() -> None:
    net = made()
    w = torch.randn(4, net.num_rows, 16)
    assert torch.equal(net.synthesize(w)[[2]], net.synthesize(torch.stack([w[2]] * 4))[:1])


@torch.no_grad()
def test_noise_fixed_random_and_none() -> None:
    net = made()
    w = torch.randn(2, net.num_rows, 16)
    assert torch.equal(net.synthesize(w), net.synthesize(w))
    assert not torch.equal(net.synthesize(w, noise="random"), net.synthesize(w, noise="random"))
    assert not torch.equal(net.synthesize(w, noise="none"), net.synthesize(w))


@torch.no_grad()
def test_truncation_goes_to_the_mean() -> None:
    net = made()
    net.mean_w.normal_()
    z = torch.randn(2, 16)
    assert torch.allclose(net.map(z, truncation=0.0), net.mean_w.expand(2, -1, -1))
    assert net.map(z).shape == (2, net.num_rows, 16)


def test_a_gradient_reaches_every_parameter() -> None:
    net = made()
    net.synthesize(net.map(torch.randn(2, 16))).square().mean().backward()
    missing = [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert missing == []


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ContractError, match="latents do not fit"):
        made().synthesize(torch.zeros(1, 18, 16))
    with pytest.raises(ContractError, match="power of two"):
        Generator(GeneratorConfig(resolution=48))
