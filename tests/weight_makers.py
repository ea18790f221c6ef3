"""Files of generators as their published layouts say, with random weights. No weight file is at hand.

Names and shapes are written down by the layouts' own rules, not asked of the code under test. With the
defaults they are those of the published files (draw those on `meta`); `base` and `top` make small ones of the
same kin: `min(base // resolution, top)` channels.
"""

from __future__ import annotations

import collections
import contextlib
import math
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

SMALL: dict[str, int] = {"style_dim": 16, "base": 512, "top": 24, "depth": 3}
BUFFERS = ("noise_const", "resample_filter", "w_avg", "kernel")


def channels(size: int, base: int = 32768, top: int = 512) -> dict[int, int]:
    return {4 * 2**i: min(base // (4 * 2**i), top) for i in range(int(math.log2(size)) - 1)}


def filter_of(total: float) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return taps[:, None] * taps[None] / 64 * total


def rosinality_shapes(
    size: int = 1024, *, base: int = 32768, top: int = 512, style_dim: int = 512, depth: int = 8
) -> Shapes:
    """`base` is 16384 times the channel multiplier."""
    table, d = channels(size, base, top), style_dim
    shapes: Shapes = {}
    for i in range(1, depth + 1):
        shapes[f"style.{i}.weight"], shapes[f"style.{i}.bias"] = (d, d), (d,)
    shapes["input.input"] = (1, table[4], 4, 4)

    def convolution(name: str, cin: int, cout: int) -> None:
        shapes[f"{name}.conv.weight"] = (1, cout, cin, 3, 3)
        shapes[f"{name}.conv.modulation.weight"], shapes[f"{name}.conv.modulation.bias"] = (cin, d), (cin,)
        shapes[f"{name}.noise.weight"], shapes[f"{name}.activate.bias"] = (1,), (cout,)

    def colour(name: str, cin: int) -> None:
        shapes[f"{name}.bias"], shapes[f"{name}.conv.weight"] = (1, 3, 1, 1), (1, 3, cin, 1, 1)
        shapes[f"{name}.conv.modulation.weight"], shapes[f"{name}.conv.modulation.bias"] = (cin, d), (cin,)

    convolution("conv1", table[4], table[4])
    colour("to_rgb1", table[4])
    for k, side in enumerate(list(table)[1:]):
        convolution(f"convs.{2 * k}", table[side // 2], table[side])
        convolution(f"convs.{2 * k + 1}", table[side], table[side])
        colour(f"to_rgbs.{k}", table[side])
        shapes[f"convs.{2 * k}.conv.blur.kernel"] = shapes[f"to_rgbs.{k}.upsample.kernel"] = (4, 4)
    for i in range(2 * len(table) - 1):
        side = 2 ** ((i + 5) // 2)
        shapes[f"noises.noise_{i}"] = (1, 1, side, side)
    return shapes


def nvidia_shapes(
    size: int = 1024, *, base: int = 32768, top: int = 512, style_dim: int = 512, depth: int = 8
) -> Shapes:
    table, d = channels(size, base, top), style_dim
    shapes: Shapes = {}
    for i in range(depth):
        shapes[f"mapping.fc{i}.weight"], shapes[f"mapping.fc{i}.bias"] = (d, d), (d,)
    shapes["mapping.w_avg"] = (d,)
    shapes["synthesis.b4.const"] = (table[4], 4, 4)
    for side, cout in table.items():
        block = f"synthesis.b{side}"
        shapes[f"{block}.resample_filter"] = (4, 4)
        layers = {"conv1": cout} if side == 4 else {"conv0": table[side // 2], "conv1": cout}
        for layer, cin in layers.items():
            name = f"{block}.{layer}"
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (cout, cin, 3, 3), (cout,)
            shapes[f"{name}.affine.weight"], shapes[f"{name}.affine.bias"] = (cin, d), (cin,)
            shapes[f"{name}.noise_strength"], shapes[f"{name}.noise_const"] = (), (side, side)
            shapes[f"{name}.resample_filter"] = (4, 4)
        shapes[f"{block}.torgb.weight"], shapes[f"{block}.torgb.bias"] = (3, cout, 1, 1), (3,)
        shapes[f"{block}.torgb.affine.weight"], shapes[f"{block}.torgb.affine.bias"] = (cout, d), (cout,)
    return shapes


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def draw(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random weights whose signals neither die nor explode; filters are what they must be."""
    rng = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("kernel"):
            made[name] = filter_of(4.0)
        elif name.endswith("resample_filter"):
            made[name] = filter_of(1.0)
        else:
            made[name] = torch.randn(shape, generator=rng)
            if name.startswith(("style.", "mapping.fc")):
                made[name] *= 100.0 if name.endswith("weight") else 10.0  # the rate of the mapping is 0.01
            elif name.endswith("bias"):
                made[name] *= 0.1
                if "modulation" in name or "affine" in name:
                    made[name] += 1.0
            elif name.endswith(("noise.weight", "noise_strength")):
                made[name] *= 0.3
    return made


def rosinality_content(
    size: int = 64, *, latent_avg: Tensor | None = None, seed: int = 0, **sizes: int
) -> dict[str, Any]:
    """What `torch.save` is given: `g_ema`, and `latent_avg` if there is one."""
    state = collections.OrderedDict(draw(rosinality_shapes(size, **{**SMALL, **sizes}), seed))
    return {"g_ema": state} if latent_avg is None else {"g_ema": state, "latent_avg": latent_avg}


def rosinality_file(
    path: Path,
    size: int = 64,
    *,
    latent_avg: Tensor | None = None,
    seed: int = 0,
    legacy: bool = False,
    **sizes: int,
) -> dict[str, Any]:
    """Write a generator file of rosinality's layout; gives what is in it.

    `sizes`: base (16384 times the channel multiplier), top, style_dim, depth; small ones by default.
    """
    content = rosinality_content(size, latent_avg=latent_avg, seed=seed, **sizes)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return content


class _Persistent:
    """Pickles as NVIDIA's persistent classes do: a call with the source text of the class and its state."""

    def __init__(self, name: str, state: Mapping[str, Any], source: str) -> None:
        self.name, self.state, self.source = name, dict(state), source

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj  # type: ignore[attr-defined]
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.name}
        return rebuild, ({**meta, "state": self.state},)


@contextlib.contextmanager
def nvidia_modules() -> Iterator[Any]:
    """The packages that such pickles name, as empty stand-ins, while a file is written. Gives `EasyDict`."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("a pickle was executed")

    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util", "__qualname__": "EasyDict"})
    network = type("Network", (), {"__module__": "dnnlib.tflib.network", "__qualname__": "Network"})
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    contents: dict[str, dict[str, Any]] = {
        "torch_utils": {},
        "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
        "dnnlib": {},
        "dnnlib.util": {"EasyDict": easy},
        "dnnlib.tflib": {},
        "dnnlib.tflib.network": {"Network": network},
    }
    try:
        for name, values in contents.items():
            sys.modules[name] = module = types.ModuleType(name)
            vars(module).update(values)
        yield types.SimpleNamespace(EasyDict=easy, Network=network)
    finally:
        for name in contents:
            sys.modules.pop(name, None)


def persistent_network(
    state: Mapping[str, Tensor],
    *,
    kind: str = "Generator",
    source: str = "",
    init: Any = None,
    conv_clamp: float | None = None,
) -> _Persistent:
    """A tree of modules from names of tensors; parameters and buffers lie where `nn.Module` keeps them."""
    inner: dict[str, dict[str, Tensor]] = {}
    own: dict[str, dict[str, Any]] = {"_parameters": {}, "_buffers": {}}
    for name, value in state.items():
        first, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(first, {})[rest] = value
        elif name.endswith(BUFFERS):
            own["_buffers"][name] = value
        else:
            own["_parameters"][name] = torch.nn.Parameter(value)
    extra: dict[str, Any] = {} if init is None else {"_init_args": [], "_init_kwargs": init}
    if "noise_strength" in state or kind == "torgb":
        extra["conv_clamp"] = conv_clamp
    modules = {
        name: persistent_network(part, kind=name, source=source, conv_clamp=conv_clamp)
        for name, part in inner.items()
    }
    return _Persistent(
        kind,
        {
            "training": False,
            "_parameters": collections.OrderedDict(own["_parameters"]),
            "_buffers": collections.OrderedDict(own["_buffers"]),
            "_non_persistent_buffers_set": set(),
            "_backward_hooks": collections.OrderedDict(),
            "_modules": collections.OrderedDict(modules),
            **extra,
        },
        source,
    )


def nvidia_pickle(
    path: Path,
    size: int = 64,
    *,
    seed: int = 0,
    conv_clamp: float | None = 256.0,
    source: str = "raise SystemExit('the source text of a file was executed')",
    state: Mapping[str, Tensor] | None = None,
    **sizes: int,
) -> dict[str, Tensor]:
    """Write a pickle of stylegan2-ada-pytorch or the stylegan3 repository; gives the tensors of `G_ema`.

    `sizes` as for `rosinality_file`; `state` replaces the drawn tensors.
    """
    tensors = dict(state) if state is not None else draw(nvidia_shapes(size, **{**SMALL, **sizes}), seed)
    with nvidia_modules() as modules:
        init = modules.EasyDict(z_dim=512, c_dim=0, img_resolution=size, synthesis_kwargs={"num_fp16_res": 4})
        network = persistent_network(tensors, source=source, init=init, conv_clamp=conv_clamp)
        content = {"G": None, "D": None, "G_ema": network, "training_set_kwargs": modules.EasyDict(path="x")}
        with path.open("wb") as stream:
            pickle.dump(content, stream)
    return tensors


def tensorflow_variables(state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Tensors of `nvidia_shapes` as variables of the TensorFlow networks, by component ("" is the whole)."""
    made: dict[str, dict[str, Any]] = {"": {}, "mapping": {}, "synthesis": {}}
    layers = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB"}
    for name, value in state.items():
        parts = name.split(".")
        if name == "mapping.w_avg":
            made[""]["dlatent_avg"] = value.numpy()
        elif parts[0] == "mapping":
            turned = value.T if parts[2] == "weight" else value
            made["mapping"][f"Dense{parts[1][2:]}/{parts[2]}"] = turned.numpy()
        elif name == "synthesis.b4.const":
            made["synthesis"]["4x4/Const/const"] = value[None].numpy()
        elif parts[-1] == "noise_const":
            side = len(value)
            number = 2 * int(math.log2(side)) - (5 if parts[2] == "conv0" else 4)
            made["synthesis"][f"noise{number}"] = value[None, None].numpy()
        elif parts[-1] != "resample_filter":
            side = parts[1][1:]
            layer = "Conv" if (side, parts[2]) == ("4", "conv1") else layers[parts[2]]
            if parts[3:] == ["affine", "weight"]:
                key, value = "mod_weight", value.T
            elif parts[3:] == ["affine", "bias"]:
                key, value = "mod_bias", value - 1
            else:
                key = parts[3]
                if key == "weight":
                    value = (value.flip((2, 3)) if layer == "Conv0_up" else value).permute(2, 3, 1, 0)
            made["synthesis"][f"{side}x{side}/{layer}/{key}"] = value.numpy()
    return made


def tensorflow_pickle(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write the 3-tuple (G, D, Gs) of the TensorFlow repository."""
    variables = tensorflow_variables(state)
    with nvidia_modules() as modules:

        def network(component: str, parts: Mapping[str, Any]) -> Any:
            made = modules.Network()
            made.__dict__.update(
                version=4,
                name=component or "Gs",
                static_kwargs={"resolution": 64},
                build_module_src="raise SystemExit",
                components=modules.EasyDict(parts),
                variables=list(variables[component].items()),
            )
            return made

        whole = network("", {name: network(name, {}) for name in ("mapping", "synthesis")})
        with path.open("wb") as stream:
            pickle.dump((None, None, whole), stream, protocol=3)


def stylegan3_shapes() -> Shapes:
    """The first and the last layers of a StyleGAN3-T of 1024 px; the middle adds nothing to tell it by."""
    shapes: Shapes = {"synthesis.input.weight": (512, 512), "synthesis.input.affine.weight": (4, 512)}
    shapes |= {"synthesis.input.affine.bias": (4,), "synthesis.input.transform": (3, 3)}
    shapes |= {"synthesis.input.freqs": (512, 2), "synthesis.input.phases": (512,), "mapping.w_avg": (512,)}
    for i in range(2):
        shapes |= {f"mapping.fc{i}.weight": (512, 512), f"mapping.fc{i}.bias": (512,)}
    for name, cin, cout, kernel in (("L0_36_512", 512, 512, 3), ("L14_1024_3", 32, 3, 1)):
        shapes |= {
            f"synthesis.{name}.weight": (cout, cin, kernel, kernel),
            f"synthesis.{name}.bias": (cout,),
            f"synthesis.{name}.affine.weight": (cin, 512),
            f"synthesis.{name}.affine.bias": (cin,),
            f"synthesis.{name}.magnitude_ema": (),
        }
    return shapes
