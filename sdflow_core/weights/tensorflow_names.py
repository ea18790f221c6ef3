"""TensorFlow's variables of the first StyleGAN2 pickles, with the names and axes of the PyTorch ones."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["in_torch_names"]

_LAYERS = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb"}
_IGNORED = ("lod",)  # how far a progressive growth had come: none in StyleGAN2


def in_torch_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and turn the variables; other tensors pass unchanged, so that a message names them.

    Convolutions are stored [h, w, I, O] there and [O, I, h, w] here, linear layers [in, out] and [out, in].
    The upsampling convolution is stored flipped. The bias of a style is stored without its 1.
    """
    if not any(re.match(r"(G_)?synthesis/", name) for name in tensors):
        return dict(tensors)
    made: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.rpartition("/")[2] in _IGNORED:
            continue
        short, turned = _renamed(re.sub(r"^G_(synthesis|mapping)/", r"\1/", name), value)
        made[short] = turned
    return made


def _renamed(name: str, value: Tensor) -> tuple[str, Tensor]:
    if name == "dlatent_avg":
        return "mapping.w_avg", value
    if (found := re.fullmatch(r"mapping/Dense(\d{1,3})/(weight|bias)", name)) is not None:
        return f"mapping.fc{found[1]}.{found[2]}", value.T if found[2] == "weight" else value
    if name == "synthesis/4x4/Const/const" and value.ndim == 4:
        return "synthesis.b4.const", value[0]
    if (found := re.fullmatch(r"synthesis/noise(\d{1,2})", name)) is not None and value.ndim == 4:
        number = int(found[1])
        side = 2 ** ((number + 5) // 2)
        layer = "conv0" if number and number % 2 else "conv1"
        return f"synthesis.b{side}.{layer}.noise_const", value[0, 0]
    found = re.fullmatch(
        r"synthesis/(\d+)x\1/(Conv|Conv0_up|Conv1|ToRGB)/(weight|bias|mod_weight|mod_bias|noise_strength)",
        name,
    )
    if found is None:
        return name, value
    prefix = f"synthesis.b{found[1]}.{_LAYERS[found[2]]}"
    match found[3]:
        case "weight" if value.ndim == 4:
            turned = value.permute(3, 2, 0, 1)
            return f"{prefix}.weight", turned.flip((2, 3)) if found[2] == "Conv0_up" else turned
        case "mod_weight":
            return f"{prefix}.affine.weight", value.T
        case "mod_bias":
            return f"{prefix}.affine.bias", value + 1
        case other:
            return f"{prefix}.{other}", value
