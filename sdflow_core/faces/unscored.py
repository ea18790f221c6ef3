"""No scores at all: what an editor carries whose directions came without a network that scores pictures."""

from __future__ import annotations

from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.records.errors import ContractError


class UnscoredConfig(NetworkConfig):
    """Names of the directions, in order."""

    attributes: tuple[str, ...]


class Unscored(nn.Module):
    """Stands where an editor has its semantic encoder: it has names and no weights, and scores nothing."""

    kind = "unscored"
    Config = UnscoredConfig

    def __init__(self, config: UnscoredConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the directions, in order."""
        return self.config.attributes

    def logits(self, images: Tensor) -> Tensor:
        """There are none.

        Raises:
            ContractError: Always.
        """
        raise ContractError(
            "scores of pictures",
            expected="a network that scores them",
            found="directions alone, which say nothing about a picture",
            todo="load the directions with a semantic encoder for their attributes",
        )
