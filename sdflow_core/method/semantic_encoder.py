"""Image -> semantic variables s: the half of the decomposition that is learned together with the flow."""

from __future__ import annotations

import copy
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from sdflow_core.records.errors import ContractError


class ScoringNetwork(Protocol):
    """What the semantic encoder needs of a network; `faces.labeller.Labeller` is one."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the outputs."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, A]."""
        ...


class SemanticEncoder(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> s [B, A] in (0, 1).

    Normalisation layers keep the statistics they came with, also during training: s of an image must not
    depend on its neighbours in the batch, and a resumed training must not either.

    Args:
        network: A module with `attributes` and `logits(images)`, of the class of the labeller. Owned, not
            copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not hasattr(network, "logits") or not hasattr(network, "attributes"):
            raise ContractError(
                "network of the semantic encoder",
                expected="`attributes` and `logits`",
                found=type(network).__name__,
            )
        self.network = network.eval()

    @classmethod
    def warm_start(cls, labeller: nn.Module) -> SemanticEncoder:
        """A trainable copy of a labeller; the labeller itself stays as it is."""
        return cls(copy.deepcopy(labeller).requires_grad_(True))

    @classmethod
    def fresh(cls, labeller: nn.Module, seed: int) -> SemanticEncoder:
        """The labeller's architecture with newly drawn weights; the global random state is left alone."""
        network = copy.deepcopy(labeller).requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in network.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        return cls(network)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the entries of s, in order."""
        return tuple(cast(ScoringNetwork, self.network).attributes)

    def train(self, mode: bool = True) -> SemanticEncoder:
        """Stays in evaluation mode whatever `mode` says (see the class)."""
        del mode
        return cast(SemanticEncoder, super().train(False))

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits of s [B, A], float32."""
        return cast(ScoringNetwork, self.network).logits(images).float()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> s [B, A]."""
        return torch.sigmoid(self.logits(images))
