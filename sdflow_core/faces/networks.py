"""The networks of one bundle, opened once, called in fixed micro-batches, every call counted.

A row must give the same bytes whatever its neighbours: the last micro-batch is filled up by repeating its
last row, so that every call of a network sees the same shape. Where a micro-batch does not fit into memory it
is halved, and stays so.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdflow_core.faces.brought_identity import BroughtIdentity
from sdflow_core.faces.checkpoint import is_model, load_model
from sdflow_core.faces.detect import Detector
from sdflow_core.faces.identity import Identity
from sdflow_core.faces.micro_batch import Halving, micro_batch_for
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.model_store import Bundle, ModelStore

if TYPE_CHECKING:
    from sdflow_core.faces.inversion import Refined
    from sdflow_core.faces.qualities import RefineConfig

Pixels = npt.NDArray[np.uint8]

_counting = threading.Lock()


def count_call(calls: Counter[str], name: str, count: int = 1) -> None:
    """Count calls of a network; of detector and identity several threads call at a time."""
    with _counting:
        calls[name] += count


def to_tensor(images: Pixels) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_uint8(images: Tensor) -> Pixels:
    """float [B, 3, H, W], clipped to [-1, 1] -> uint8 [B, H, W, 3], rounded to nearest."""
    scaled = (images.detach().float().clamp(-1, 1) + 1.0) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class Networks:
    """Opens the models of a bundle on first use.

    Args:
        models: Where the weights lie.
        bundle: Which models.
        device: Torch device.
        micro_batch: Rows a call; by default what suits the resolution of the bundle.
        calls: Counter of micro-batches by network; shared by all that count together.
    """

    def __init__(
        self,
        models: ModelStore,
        bundle: Bundle,
        *,
        device: str = "cpu",
        micro_batch: int | None = None,
        calls: Counter[str] | None = None,
    ) -> None:
        self.models, self.bundle, self.device = models, bundle, device
        self.micro_batch = micro_batch or micro_batch_for(bundle.resolution)
        self._halvings: dict[str, Halving] = {}
        self.calls: Counter[str] = Counter() if calls is None else calls

    def digest(self, kind: str) -> str:
        """Digest of one model of the bundle.

        Raises:
            ContractError: The bundle has no such model.
        """
        digest = getattr(self.bundle, kind)
        if not isinstance(digest, str):
            raise ContractError(
                f"the bundle has no {kind}", todo="promote a bundle that has one: sdflow models list"
            )
        return digest

    def _bytes(self, kind: str) -> bytes:
        return self.models.weights(self.digest(kind))

    def _network(self, kind: str) -> Any:
        network = load_model(self._bytes(kind), expect=kind, device=self.device)
        # convolutions are about twice as fast in this layout on CPUs
        return network.to(memory_format=torch.channels_last)

    @cached_property
    def generator(self) -> Any:
        """`faces.generator.Generator`."""
        return self._network("generator")

    @cached_property
    def encoder(self) -> Any:
        """`faces.encoder.Encoder`, or one of `faces.style_encoder`: one that iterates gets the generator."""
        from sdflow_core.faces.style_encoder import IteratedEncoder, StyleEncoder

        network = self._network("encoder")
        if isinstance(network, StyleEncoder) and network.config.iterated:
            return IteratedEncoder(network, self.generator.synthesize)
        return network

    @cached_property
    def labeller(self) -> Any:
        """`faces.labeller.Labeller`."""
        return self._network("labeller")

    @cached_property
    def judge(self) -> Any:
        """`faces.labeller.JudgeNetwork`; only ever reports, never steers."""
        return self._network("judge")

    @cached_property
    def prior(self) -> Any:
        """`faces.prior.Prior`."""
        return load_model(self._bytes("prior"), expect="prior", device=self.device)

    @cached_property
    def detector(self) -> Detector:
        """YuNet."""
        return Detector(self._bytes("detector"))

    @cached_property
    def identity(self) -> Identity | BroughtIdentity:
        """The gate's judge of identity: SFace, or a network that somebody brought."""
        data = self._bytes("identity")
        if not is_model(data):
            return Identity(data)
        return BroughtIdentity(load_model(data, expect="identity", device=self.device), self.device)

    def batched(self, name: str, call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Apply `call` to micro-batches of constant size.

        Args:
            name: Under which the calls are counted.
            call: [micro_batch, ...] -> [micro_batch, ...].
            rows: [N, ...].

        Returns:
            [N, ...], same order. N = 0 is an error of the caller.

        Raises:
            ContractError: Not even one row fits into memory.
        """
        out: list[Tensor] = []
        size = self.micro_batch
        halving = self._halvings.setdefault(name, Halving(name))

        def on_device(part: Tensor) -> Tensor:
            return call(part.to(self.device)).float().cpu()

        with torch.no_grad():
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                count = len(part)
                if count < size:
                    part = torch.cat([part, part[-1:].expand(size - count, *part.shape[1:])])
                if part.ndim == 4:
                    part = part.contiguous(memory_format=torch.channels_last)
                count_call(self.calls, name)
                out.append(halving.apply(on_device, part)[:count])
        return torch.cat(out)

    def encode(self, images: Pixels) -> npt.NDArray[np.float32]:
        """Aligned faces uint8 [N, H, W, 3] -> w+ [N, L, D]."""
        return self.batched("encoder", self.encoder.encode, to_tensor(images)).numpy()

    def refine(self, images: Tensor, w_plus: Tensor, config: RefineConfig) -> Refined:
        """Images [N, 3, H, W] and the encoder's codes [N, L, D] -> codes that render nearer to them."""
        from sdflow_core.faces.inversion import refine

        count_call(self.calls, "generator", -(-len(w_plus) // config.micro_batch) * (config.steps + 1))
        return refine(self.generator, images, w_plus, config, centre=self._mean_code())

    def _mean_code(self) -> Tensor | None:
        """The prior's mean [L, D] for generators that hold none; None: the generator's own."""
        if self.bundle.prior is None or bool(self.generator.mean_w.any()):
            return None
        return self.prior.mean

    def people(self, count: int, rng: torch.Generator, truncation: float) -> Tensor:
        """Codes of people who do not exist, [count, L, D]: of the prior, else of the generator's own mapping.

        Args:
            count: How many.
            rng: CPU generator; the same state gives the same codes.
            truncation: 0 gives the mean, 1 the full spread.

        Raises:
            ContractError: The bundle has no prior and its generator no mapping network.
        """
        if self.bundle.prior is not None or self.generator.mapping is None:
            return self.prior.sample(count, rng, truncation=truncation)
        z = torch.randn(count, self.generator.config.style_dim, generator=rng)
        with torch.no_grad():
            return self.generator.map(z.to(self.device), truncation=truncation).cpu()

    def render(self, w_plus: Tensor) -> Tensor:
        """w+ [N, L, D] -> images [N, 3, H, W] clamped to [-1, 1], as a picture file would hold them."""
        return self.batched("generator", self.generator.synthesize, w_plus).clamp(-1.0, 1.0)

    def scores(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> labeller's scores [N, A]."""
        return self.batched("labeller", self.labeller.scores, images)

    def judged(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> the judge's scores [N, A]."""
        return self.batched("judge", self.judge.scores, images)

    def embed(self, images: Pixels, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Crops uint8 [N, H, W, 3] and points [N, 5, 2] px -> unit vectors [N, 128]."""
        count_call(self.calls, "identity", len(images))
        return self.identity.embed(images, points)
