"""Identity and expression networks of face-api: judges only, never in training, gates or model selection.

Source of the weights: package @vladmandic/face-api (MIT). The identity network is dlib's ResNet (King, 2017;
public domain).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sdflow_core.faces.pretraining.tensorflow_weights import load_tensors

SAME_PERSON_DISTANCE = 0.6  # dlib's published threshold
IDENTITY_FILE = "face_recognition_model-weights_manifest.json"
EXPRESSION_FILE = "face_expression_model-weights_manifest.json"
EXPRESSION_PX = 112
_MEAN_RGB = (122.782, 117.001, 104.298)
_IDENTITY_BLOCKS = (
    *("conv32_1", "conv32_2", "conv32_3", "conv64_down", "conv64_1", "conv64_2", "conv64_3"),
    *("conv128_down", "conv128_1", "conv128_2", "conv256_down", "conv256_1", "conv256_2", "conv256_down_out"),
)
_HAPPY = 1  # neutral, happy, sad, angry, fearful, disgusted, surprised


class IdentityJudge:
    """dlib's ResNet: two faces are of one person when their descriptors are nearer than 0.6.

    Args:
        folder: Where face-api's weight files lie.
    """

    def __init__(self, folder: Path) -> None:
        tensors = load_tensors(folder / IDENTITY_FILE)
        self._last = tensors["fc"]
        self._layers: dict[str, tuple[Tensor, Tensor]] = {}
        for name in (key.removesuffix("/conv/filters") for key in tensors if key.endswith("/conv/filters")):
            scale = tensors[f"{name}/scale/weights"]
            filters = _filters(tensors[f"{name}/conv/filters"]) * scale.reshape(-1, 1, 1, 1)
            bias = tensors[f"{name}/conv/bias"] * scale + tensors[f"{name}/scale/biases"]
            self._layers[name] = filters.contiguous(memory_format=torch.channels_last), bias

    def describe(self, images: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
        """Describe chips (`benchmarks.judges.chips`).

        Args:
            images: uint8 [N, 150, 150, 3] RGB.
            batch: Chips a call.

        Returns:
            [N, 128] float32; Euclidean distances count.
        """
        return _in_batches(images, self._descriptors, 128, batch)

    def _layer(self, name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(x, *self._layers[name], stride, padding)

    def _descriptors(self, pixels: Tensor) -> Tensor:
        x = _centred(pixels) / 256  # as dlib does; the package divides by 255
        x = F.max_pool2d(self._layer("conv32_down", x, 2, 0).relu(), 3, 2)
        for name in _IDENTITY_BLOCKS:
            down = "down" in name
            y = self._layer(f"{name}/conv1", x, 2 if down else 1, 0 if down else 1).relu()
            y = self._layer(f"{name}/conv2", y)
            if down:
                x = F.avg_pool2d(x, 2, 2)
                y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
                x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))  # the new channels start empty
            x = (x + y).relu()
        return x.mean((2, 3)) @ self._last


class ExpressionJudge:
    """face-api's expression net; here only its opinion of a smile.

    Args:
        folder: Where face-api's weight files lie.
        manifest: Name of the manifest; its 68-point network differs in the last layer alone.
    """

    def __init__(self, folder: Path, manifest: str = EXPRESSION_FILE) -> None:
        tensors = load_tensors(folder / manifest)
        self._last = tensors["fc/weights"], tensors["fc/bias"]
        self._weights: dict[str, Tensor] = {}
        for name, value in tensors.items():
            if name.endswith("depthwise_filter"):
                self._weights[name] = value.permute(2, 3, 0, 1).contiguous()
            elif name.endswith(("filters", "pointwise_filter")):
                self._weights[name] = _filters(value).contiguous()
            else:
                self._weights[name] = value

    def smiling(self, images: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
        """Probability that a face is happy.

        Args:
            images: uint8 [N, 112, 112, 3] RGB.
            batch: Images a call.

        Returns:
            [N] float32 in [0, 1].
        """
        return _in_batches(images, self._probabilities, 7, batch)[:, _HAPPY]

    def _separable(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        w = self._weights
        x = _same(x, stride)
        x = F.conv2d(x, w[f"{name}/depthwise_filter"], stride=stride, groups=x.shape[1])
        return F.conv2d(x, w[f"{name}/pointwise_filter"], w[f"{name}/bias"])

    def logits(self, pixels: Tensor) -> Tensor:
        """[N, 3, 112, 112] levels -> outputs of the last layer [N, K]."""
        x, w = _centred(pixels) / 255, self._weights
        for block in range(4):
            name = f"dense{block}/conv"
            if block:
                known = self._separable(f"{name}0", x, 2).relu()
            else:
                known = F.conv2d(_same(x, 2), w[f"{name}0/filters"], w[f"{name}0/bias"], 2).relu()
            for layer in (1, 2, 3):  # each reads the sum of all before it
                known = known + self._separable(f"{name}{layer}", known.relu())
            x = known.relu()
        return F.avg_pool2d(x, 7, 2).flatten(1) @ self._last[0] + self._last[1]

    def _probabilities(self, pixels: Tensor) -> Tensor:
        return self.logits(pixels).softmax(1)


def _in_batches(
    images: NDArray[np.uint8], call: Callable[[Tensor], Tensor], width: int, batch: int
) -> NDArray[np.float32]:
    out = np.empty((len(images), width), np.float32)
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            part = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float()
            out[start : start + batch] = call(part.contiguous(memory_format=torch.channels_last)).numpy()
    return out


def _centred(pixels: Tensor) -> Tensor:
    return pixels - torch.tensor(_MEAN_RGB).reshape(1, 3, 1, 1)


def _same(x: Tensor, stride: int) -> Tensor:
    """Pad for a 3x3 filter as TensorFlow's SAME does: an even side halved gets its row at the end only."""
    top, left = (1 if stride == 1 or side % 2 else 0 for side in x.shape[2:])
    return F.pad(x, (left, 1, top, 1))


def _filters(kernel: Tensor) -> Tensor:
    """TensorFlow's [h, w, in, out] -> [out, in, h, w]."""
    return kernel.permute(3, 2, 0, 1)
