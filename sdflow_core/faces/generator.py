"""The StyleGAN2 generator family in plain PyTorch.

One class covers every member of the family: FFHQ 1024 px config-f is `GeneratorConfig()`, our compact 64 px
models are the same class with smaller numbers. No compiled operators; the same code runs on CPU and CUDA, in
fp32 and under autocast.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdflow_core.faces import large_features
from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.faces.large_features import Block, Form, Precision
from sdflow_core.records.config import Growing
from sdflow_core.records.errors import ContractError

NoiseMode = Literal["fixed", "random", "none"]
_LRELU_GAIN = math.sqrt(2.0)


class GeneratorConfig(Growing, NetworkConfig):
    """Numbers that select one member of the family.

    Attributes:
        resolution: Side of the image in pixels, a power of two >= 8.
        style_dim: D, width of one style row.
        channel_base: Channels at a resolution r are `min(channel_base // r, channel_max)`.
        channel_max: Upper bound of the channel count.
        mapping_layers: Depth of the mapping network; 0 for models whose prior is a fitted density of w+.
        conv_clamp: Features stay within plus and minus this number, as in training; None for no bound.
    """

    later = ("conv_clamp",)

    resolution: int = 1024
    style_dim: int = 512
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    conv_clamp: float | None = None

    @property
    def num_rows(self) -> int:
        """L, rows of w+: 18 at 1024 px, 10 at 64 px."""
        return 2 * int(math.log2(self.resolution)) - 2

    def channels(self, resolution: int) -> int:
        """Feature channels at one resolution."""
        return min(self.channel_base // resolution, self.channel_max)


class EqualLinear(nn.Module):
    """Linear layer with run-time weight scaling (equalised learning rate)."""

    def __init__(
        self, in_features: int, out_features: int, *, bias_init: float = 0.0, lr_mul: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init))
        self.weight_gain = lr_mul / math.sqrt(in_features)
        self.bias_gain = lr_mul

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class MappingNetwork(nn.Module):
    """z [B, D] ~ N(0, I) -> w [B, D]."""

    def __init__(self, style_dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EqualLinear(style_dim, style_dim, lr_mul=0.01) for _ in range(layers)])

    def forward(self, z: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        x = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2) * _LRELU_GAIN
        return x


class ModulatedConv(nn.Module):
    """Convolution with input channels scaled by a style, optionally demodulated, optionally upsampling by 2.

    Modulation and demodulation are applied to the activations instead of to one weight per sample: equal up
    to rounding, and one ordinary convolution serves the whole batch.
    """

    def __init__(
        self, cin: int, cout: int, kernel: int, style_dim: int, *, demodulate: bool = True, up: bool = False
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel))
        self.affine = EqualLinear(style_dim, cin, bias_init=1.0)
        self.gain = 1.0 / math.sqrt(cin * kernel * kernel)
        self.demodulate, self.up, self.padding = demodulate, up, kernel // 2

    def forward(self, x: Tensor, w: Tensor, fir: Tensor) -> Tensor:
        """x [B, Cin, H, W], w [B, D] -> [B, Cout, H or 2H, W or 2W]."""
        style = self.affine(w)
        weight = self.weight * self.gain
        x = x * style[:, :, None, None].to(x.dtype)
        if self.up:
            y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # [B, Cout, 2H+1, 2W+1]
            y = blur(y, fir, pad=(1, 1))
        else:
            y = F.conv2d(x, weight, padding=self.padding)
        if self.demodulate:
            power = weight.float().square().sum(dim=(2, 3))  # [Cout, Cin]
            scale = torch.rsqrt(style.float().square() @ power.T + 1e-8)
            y = y * scale[:, :, None, None].to(y.dtype)
        return y


def fir_kernel() -> Tensor:
    """The separable [1, 3, 3, 1] resampling filter of the family, gain 4 (upsampling), shape [4, 4]."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64.0 * 4.0


def blur(x: Tensor, fir: Tensor, *, pad: tuple[int, int]) -> Tensor:
    """Depthwise FIR filter. x [B, C, H, W], fir [4, 4] -> [B, C, H + sum(pad) - 3, ...]."""
    x = F.pad(x, (pad[0], pad[1], pad[0], pad[1]))
    channels = x.shape[1]
    return F.conv2d(x, fir.to(x.dtype)[None, None].expand(channels, 1, 4, 4), groups=channels)


def upsample(x: Tensor, fir: Tensor) -> Tensor:
    """Zero-insertion upsampling by 2 followed by the FIR filter: [B, C, H, W] -> [B, C, 2H, 2W]."""
    b, c, h, w = x.shape
    spread = x.new_zeros(b, c, h, 2, w, 2)
    spread[:, :, :, 0, :, 0] = x
    # pads (2, 1): what the original's upfirdn with kernel 4 and factor 2 uses
    return blur(spread.reshape(b, c, 2 * h, 2 * w), fir, pad=(2, 1))


class StyledConv(nn.Module):
    """Modulated convolution + noise + bias + leaky ReLU."""

    def __init__(
        self, cin: int, cout: int, resolution: int, style_dim: int, *, up: bool, clamp: float | None = None
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv(cin, cout, 3, style_dim, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(cout))
        self.clamp = clamp
        self.noise: Tensor
        self.register_buffer("noise", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, fir: Tensor, noise: NoiseMode) -> Tensor:
        """x [B, Cin, H, W], w [B, D] -> [B, Cout, H or 2H, ...]."""
        y = self.conv(x, w, fir)
        if noise == "fixed":
            y = y + (self.noise * self.noise_strength).to(y.dtype)
        elif noise == "random":
            y = y + torch.randn_like(y[:, :1]) * self.noise_strength.to(y.dtype)
        y = F.leaky_relu(y + self.bias[None, :, None, None].to(y.dtype), 0.2) * _LRELU_GAIN
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    """1x1 modulated convolution to three channels, added to the upsampled skip image."""

    def __init__(self, cin: int, style_dim: int, *, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp = clamp
        self.conv = ModulatedConv(cin, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor, skip: Tensor | None, fir: Tensor) -> Tensor:
        """x [B, C, H, W] -> rgb [B, 3, H, W]."""
        rgb = self.conv(x, w, fir) + self.bias[None, :, None, None].to(x.dtype)
        if self.clamp is not None:
            rgb = rgb.clamp(-self.clamp, self.clamp)
        return rgb if skip is None else rgb + upsample(skip, fir)


class Generator(nn.Module):
    """w+ [B, L, D] -> RGB images [B, 3, H, W], nominally in [-1, 1] (not clamped).

    Example:
        >>> small = dict(style_dim=8, channel_base=64, channel_max=8, mapping_layers=2)
        >>> net = Generator(GeneratorConfig(resolution=16, **small))
        >>> net.num_rows, tuple(net.synthesize(torch.zeros(2, 6, 8)).shape)
        (6, (2, 3, 16, 16))
    """

    kind = "generator"
    Config = GeneratorConfig

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        size = config.resolution
        if size < 8 or size & (size - 1):
            raise ContractError("generator resolution", expected="a power of two >= 8", found=size)
        self.config = config
        d, clamp = config.style_dim, config.conv_clamp
        self.mapping = MappingNetwork(d, config.mapping_layers) if config.mapping_layers else None
        self.mean_w: Tensor
        self.register_buffer("mean_w", torch.zeros(config.num_rows, d))
        self.fir: Tensor
        self.register_buffer("fir", fir_kernel(), persistent=False)
        self.const = nn.Parameter(torch.randn(1, config.channels(4), 4, 4))
        self.first = StyledConv(config.channels(4), config.channels(4), 4, d, up=False, clamp=clamp)
        self.first_rgb = ToRGB(config.channels(4), d, clamp=clamp)
        self.up_convs, self.convs, self.rgbs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        res = 8
        while res <= size:
            cin, cout = config.channels(res // 2), config.channels(res)
            self.up_convs.append(StyledConv(cin, cout, res, d, up=True, clamp=clamp))
            self.convs.append(StyledConv(cout, cout, res, d, up=False, clamp=clamp))
            self.rgbs.append(ToRGB(cout, d, clamp=clamp))
            res *= 2

    @property
    def num_rows(self) -> int:
        """L, the number of style rows."""
        return self.config.num_rows

    def map(self, z: Tensor, *, truncation: float = 1.0) -> Tensor:
        """z [B, D] ~ N(0, I) -> w+ [B, L, D], every row the same w.

        Raises:
            ContractError: This model has no mapping network (its prior is a fitted density, `faces.prior`).
        """
        if self.mapping is None:
            raise ContractError(
                "generator without mapping network", todo="sample from its prior (faces.prior.Prior)"
            )
        rows = self.mapping(z)[:, None, :].expand(-1, self.num_rows, -1)
        return self.mean_w + truncation * (rows - self.mean_w)

    def synthesize(
        self,
        w_plus: Tensor,
        *,
        noise: NoiseMode = "fixed",
        precision: Precision = "fp32",
        up_to: int | None = None,
        form: Form | None = None,
    ) -> Tensor:
        """Render codes.

        Args:
            w_plus: [B, L, D] float.
            noise: `fixed` uses the buffers of the model (deterministic), `random` draws, `none` adds nothing.
            precision: `fp16` or `bf16` computes the last four resolutions in it, with features bounded by
                256 as in training.
            up_to: Stop at this resolution, for a preview: the picture there, before finer ones are added.
            form: How resolutions of 128 px and more are computed without gradients, see `large_features`;
                None takes what is fastest on the device.

        Returns:
            [B, 3, H, W] RGB, fp32 for fp32 codes, nominally in [-1, 1]; H = W = `up_to` where given.

        Raises:
            ContractError: The codes do not have this generator's rows and width, or `up_to` is not one of its
                resolutions, or there is no such precision.
        """
        self._check(w_plus, precision, up_to)
        sides = [8 * 2**b for b in range(len(self.rgbs)) if 8 * 2**b <= (up_to or self.config.resolution)]
        half_from = self.config.resolution >> (large_features.HALF_RESOLUTIONS - 1)
        half_from = self.config.resolution + 1 if precision == "fp32" else half_from
        graded = torch.is_grad_enabled() and (
            w_plus.requires_grad or any(p.requires_grad for p in self.parameters())
        )
        other_from = half_from if graded else min(half_from, large_features.LARGE)
        fir = self.fir
        x = self.const.expand(w_plus.shape[0], -1, -1, -1)
        x = self.first(x, w_plus[:, 0], fir, noise)
        rgb = self.first_rgb(x, w_plus[:, 1], None, fir)
        layers = list(zip(sides, self.up_convs, self.convs, self.rgbs, strict=False))
        blocks: list[Block] = []
        for b, (side, up, conv, to_rgb) in enumerate(layers):
            if side >= other_from:
                dtype = large_features.DTYPES[precision] if side >= half_from else x.dtype
                bound = self.config.conv_clamp
                if side >= half_from:
                    bound = min(bound or math.inf, large_features.HALF_BOUND)
                rows = w_plus[:, 1 + 2 * b : 4 + 2 * b]
                made = (cast(StyledConv, up), cast(StyledConv, conv), cast(ToRGB, to_rgb))
                blocks.append(Block(*made, rows, noise, dtype, bound))
                continue
            x = up(x, w_plus[:, 1 + 2 * b], fir, noise)
            x = conv(x, w_plus[:, 2 + 2 * b], fir, noise)
            rgb = to_rgb(x, w_plus[:, 3 + 2 * b], rgb, fir)
        if not blocks:
            return rgb
        if graded:
            form = "factorised"
        return large_features.finished(blocks, x, rgb, fir, form)

    def _check(self, w_plus: Tensor, precision: str, up_to: int | None) -> None:
        if w_plus.ndim != 3 or tuple(w_plus.shape[1:]) != (self.num_rows, self.config.style_dim):
            raise ContractError(
                "latents do not fit the generator",
                expected=f"[B, {self.num_rows}, {self.config.style_dim}]",
                found=list(w_plus.shape),
                todo="use latents made by the encoder of the same bundle",
            )
        known = [4 * 2**i for i in range(self.num_rows // 2)]
        if up_to is not None and up_to not in known:
            raise ContractError("resolution of the preview", expected=f"one of {known}", found=up_to)
        if precision not in large_features.DTYPES:
            raise ContractError("precision", expected="fp32, fp16 or bf16", found=precision)

    def forward(self, w_plus: Tensor, noise: NoiseMode = "fixed") -> Tensor:
        """Alias of `synthesize`."""
        return self.synthesize(w_plus, noise=noise)
