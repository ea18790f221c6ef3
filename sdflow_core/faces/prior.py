"""A density of w+ to sample new people from, for generators without a mapping network.

A Gaussian fitted to the codes of a training set, kept as mean and principal factors. Truncation scales
samples towards the mean, as the truncation trick of StyleGAN does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdflow_core.faces.checkpoint import NetworkConfig
from sdflow_core.records.errors import ContractError


class PriorConfig(NetworkConfig):
    """L, D and the number of principal factors kept."""

    num_rows: int = 10
    style_dim: int = 128
    factors: int = 256


class Prior(nn.Module):
    """w+ = mean + truncation * factors^T z, z ~ N(0, I_K)."""

    kind = "prior"
    Config = PriorConfig

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.mean: Tensor
        self.factors: Tensor
        self.register_buffer("mean", torch.zeros(config.num_rows, config.style_dim))
        self.register_buffer("factors", torch.zeros(config.factors, config.num_rows, config.style_dim))

    @classmethod
    def fit(cls, codes: Tensor, factors: int = 256) -> Prior:
        """Fit to codes [N, L, D].

        Raises:
            ContractError: Fewer codes than factors, or non-finite codes.
        """
        n, rows, dim = codes.shape
        factors = min(factors, rows * dim)
        if n <= factors or not bool(torch.isfinite(codes).all()):
            raise ContractError(
                "codes to fit a prior to", expected=f"more than {factors} finite codes", found=f"{n} codes"
            )
        prior = cls(PriorConfig(num_rows=rows, style_dim=dim, factors=factors))
        flat = codes.reshape(n, -1).double()
        mean = flat.mean(0)
        covariance = (flat - mean).T @ (flat - mean) / (n - 1)
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        top = vectors[:, -factors:] * values[-factors:].clamp_min(0).sqrt()
        prior.mean.copy_(mean.reshape(rows, dim))
        prior.factors.copy_(top.T.reshape(factors, rows, dim))
        return prior

    def sample(self, n: int, rng: torch.Generator, *, truncation: float = 0.8) -> Tensor:
        """Draw codes.

        Args:
            n: How many.
            rng: CPU generator; the same state gives the same codes.
            truncation: 0 gives the mean, 1 the fitted spread.

        Returns:
            w+ [n, L, D].
        """
        z = torch.randn(n, self.config.factors, generator=rng)
        return self.mean + truncation * torch.einsum("nk,kld->nld", z.to(self.factors.device), self.factors)
