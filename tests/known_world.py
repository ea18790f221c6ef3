"""A world with known answers: codes, pictures and attributes of which every true counterfactual is known.

What a face has and nobody can measure, a world that was made can: the code of *the same* person with another
smile. Factors of a person are g [A] (semantics, s = sigmoid(3 g)), n [24] (identity) and a rest of small
numbers. They are correlated among people, g with g and g with n, as by one Gaussian copula; the scores s pile
up at 0 and 1. A fixed map M, invertible in closed form, mixes them into codes:

    (g, n) -> three times [rotation, affine coupling, sinh-arcsinh] -> core [A + 24]
    rest   -> rest * exp(.) + shift(core)                  the core's manifold is curved
    (core, rest) -> rotation of all L*D numbers -> w+ [L, D]

Pictures are drawn from (s, n) = M^-1(w+), smoothly, so that terms through the generator have gradients: a
disc (size, colour and place are three attributes), striped bars above and below (the fourth), identity as a
pattern of waves behind. The true edit of a code is `counterfactual`: same n, same rest, another s. Nothing
here is learned but the labeller, which sees pictures only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTRIBUTES = ("size", "colour", "place", "stripes")
A, NUISANCE, ROWS, DIM = len(ATTRIBUTES), 24, 6, 32
SHARPNESS = 3.0  # s = sigmoid(3 g), g of unit variance: every fifth score lies beyond .02 or .98
SIDE_PX = 32
# Shares of variance that come from hidden causes which factors have in common. Attributes correlate by about
# .25 with each other and .12 with each number of the identity: a mean person of another s is another person.
_SHARED_SEMANTICS, _SHARED_IDENTITY, _CAUSES = 0.6, 0.15, 6


class _Coupling(nn.Module):
    """(x, y) -> (x, y * exp(a(x)) + b(x)) with fixed random a and b, both bounded."""

    def __init__(self, seen: int, moved: int, scale: float, shift: float, rng: torch.Generator) -> None:
        super().__init__()
        width = 32
        self.seen, self.scale, self.shift = seen, scale, shift
        self.first: Tensor
        self.bias: Tensor
        self.second: Tensor
        self.register_buffer("first", torch.randn(seen, width, generator=rng) * 1.2 * seen**-0.5)
        self.register_buffer("bias", torch.randn(width, generator=rng))
        self.register_buffer("second", torch.randn(width, 2 * moved, generator=rng) * 2.0 * width**-0.5)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (torch.tanh(x @ self.first + self.bias) @ self.second).chunk(2, dim=1)
        return self.scale * torch.tanh(a), self.shift * torch.tanh(b)

    def forward(self, both: Tensor) -> Tensor:
        x, y = both[:, : self.seen], both[:, self.seen :]
        a, b = self.terms(x)
        return torch.cat([x, y * a.exp() + b], dim=1)

    def inverse(self, both: Tensor) -> Tensor:
        x, y = both[:, : self.seen], both[:, self.seen :]
        a, b = self.terms(x)
        return torch.cat([x, (y - b) * (-a).exp()], dim=1)


def _rotation(size: int, rng: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64))
    return q * r.diagonal().sign()


class KnownWorld(nn.Module):
    """Codes, pictures, counterfactuals. `synthesize` makes it a generator for `train_editor`.

    Args:
        seed: Another seed is another world, correlations included.
        confounded: Whether identity is correlated with the attributes; without, a flow's z can be the truth.
        dtype: Of codes and factors; in float64 the inverse is exact to 1e-9.

    Example:
        >>> world = KnownWorld(0)
        >>> w = world.sample(3, seed=1)
        >>> s, n = world.factors(w)
        >>> bool((world.counterfactual(w, s) - w).abs().max() < 1e-4)
        True
    """

    def __init__(self, seed: int = 0, *, confounded: bool = True, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(1000 + seed)
        core, rest = A + NUISANCE, ROWS * DIM - A - NUISANCE
        self.core = core
        causes = torch.randn(core, _CAUSES, generator=rng)
        shared = torch.full((core, 1), _SHARED_IDENTITY if confounded else 0.0)
        shared[:A] = _SHARED_SEMANTICS
        self.causes: Tensor
        self.register_buffer("causes", causes / causes.norm(dim=1, keepdim=True) * shared.sqrt())
        self.register_buffer("own", (1.0 - shared[:, 0]).sqrt())
        for i in range(3):
            self.register_buffer(f"turn_{i}", _rotation(core, rng))
            self.register_buffer(f"bend_{i}", 0.35 * torch.randn(core, generator=rng))
            self.register_buffer(f"tail_{i}", 0.85 + 0.3 * torch.rand(core, generator=rng))
        half = core // 2
        self.couplings = nn.ModuleList(_Coupling(half, core - half, 0.25, 0.5, rng) for _ in range(3))
        self.curve = _Coupling(core, rest, 0.3, 0.25, rng)
        # of what is neither semantics nor identity: small, falling, as principal components fall
        spread = 0.3 * (torch.arange(rest) / 12.0 + 1.0).rsqrt()
        self.register_buffer("rest_spread", spread)
        self.register_buffer("mix", _rotation(ROWS * DIM, rng))
        self.register_buffer("centre", 0.5 * torch.randn(ROWS * DIM, generator=rng))
        # pictures
        y, x = torch.meshgrid(*[(torch.arange(SIDE_PX) + 0.5) / SIDE_PX * 2 - 1] * 2, indexing="ij")
        self.register_buffer("x", x)
        self.register_buffer("y", y)
        waves = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)]
        patterns = [
            torch.cos(math.pi * (a * (x + 1) / 2)) * torch.cos(math.pi * b * (y + 1) / 2) for a, b in waves
        ]
        self.register_buffer(
            "patterns", torch.stack(patterns)
        )  # 8 waves * 3 colours = 24 numbers of identity
        self.to(dtype)

    # --- people ---------------------------------------------------------------------------------------

    def sample(self, count: int, seed: int) -> Tensor:
        """Codes [count, L, D] of people drawn from the population."""
        rng = torch.Generator().manual_seed(seed)
        hidden = torch.randn(count, _CAUSES, generator=rng)
        own = torch.randn(count, self.core, generator=rng).to(self.causes) * self.own
        core = hidden.to(self.causes) @ self.causes.T + own
        rest = torch.randn(count, len(self.rest_spread), generator=rng).to(self.causes) * self.rest_spread
        return self.code(torch.cat([core, rest], dim=1))

    def code(self, u: Tensor) -> Tensor:
        """M: factors u = (g, n, rest) [B, L*D] -> codes [B, L, D]."""
        core, rest = u[:, : self.core], u[:, self.core :]
        for i, coupling in enumerate(self.couplings):
            core = coupling(core @ getattr(self, f"turn_{i}"))
            core = torch.sinh(torch.asinh(core) * getattr(self, f"tail_{i}") + getattr(self, f"bend_{i}"))
        flat = self.curve(torch.cat([core, rest], dim=1)) @ self.mix + self.centre
        return flat.unflatten(1, (ROWS, DIM))

    def source(self, w_plus: Tensor) -> Tensor:
        """M^-1: codes [B, L, D] -> factors u = (g, n, rest) [B, L*D], in closed form."""
        u = self.curve.inverse((w_plus.flatten(1) - self.centre) @ self.mix.T)
        core = u[:, : self.core]
        for i in (2, 1, 0):
            core = torch.asinh(core) - getattr(self, f"bend_{i}")
            core = self.couplings[i].inverse(torch.sinh(core / getattr(self, f"tail_{i}")))
            core = core @ getattr(self, f"turn_{i}").T
        return torch.cat([core, u[:, self.core :]], dim=1)

    def factors(self, w_plus: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, L, D] -> true s [B, A] in (0, 1), true identity n [B, 24]."""
        u = self.source(w_plus)
        return torch.sigmoid(SHARPNESS * u[:, :A]), u[:, A : self.core]

    def counterfactual(self, w_plus: Tensor, s: Tensor) -> Tensor:
        """The true edit: codes [B, L, D] of the same people (n and rest unchanged) at s [B, A] in (0, 1)."""
        u = self.source(w_plus)
        now = torch.sigmoid(SHARPNESS * u[:, :A])
        # where nothing is asked, no rounding of the sigmoid is added
        g = torch.where(s == now, u[:, :A], torch.logit(s) / SHARPNESS)
        return self.code(torch.cat([g, u[:, A:]], dim=1))

    # --- pictures -------------------------------------------------------------------------------------

    def synthesize(self, w_plus: Tensor) -> Tensor:
        """Codes [B, L, D] -> pictures [B, 3, 32, 32] in (-1, 1), differentiable."""
        s, n = self.factors(w_plus)
        size, colour, place, stripes = (s[:, a, None, None] for a in range(A))
        pattern = torch.einsum("bcp,phw->bchw", n.unflatten(1, (3, -1)), self.patterns)
        picture = 0.45 * torch.tanh(0.35 * pattern)
        far = ((self.x - (0.5 * place - 0.25)) ** 2 + self.y**2 + 1e-6).sqrt()
        disc = torch.sigmoid((0.22 + 0.22 * size - far) * 24.0)
        paint = torch.stack(
            [0.9 * (2 * colour - 1), -0.3 * torch.ones_like(colour), 0.9 * (1 - 2 * colour)], 1
        )
        picture = picture * (1 - disc[:, None]) + paint * disc[:, None]
        edge = torch.sigmoid((self.y.abs() - 0.75) * 24.0) * 0.5 * stripes  # two bars, above and below
        return (
            picture * (1 - edge[:, None])
            + torch.sign(torch.sin(self.x * 8 * math.pi))[None, None] * edge[:, None]
        )


class WorldLabeller(nn.Module):
    """Reads the attributes from pictures: a small network on pixels, to be taught by `taught_labeller`."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes = ATTRIBUTES
        self.first = nn.Conv2d(3, 16, 4, stride=4)
        self.second = nn.Linear(16 * 64, 64)
        self.last = nn.Linear(64, A)

    def logits(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, 32, 32] in [-1, 1] -> logits of s [B, A]."""
        h = F.silu(self.first(images)).flatten(1)
        return self.last(F.silu(self.second(h)))


def taught_labeller(world: KnownWorld, *, steps: int = 600, seed: int = 0) -> WorldLabeller:
    """A labeller taught on pictures of 4,000 people by cross-entropy against s, as people label faces."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        labeller = WorldLabeller()
    w = world.sample(4000, seed=500 + seed)
    with torch.no_grad():
        pictures, s = world.synthesize(w), world.factors(w)[0]
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(labeller.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.randint(len(w), (128,), generator=rng)
        loss = F.binary_cross_entropy_with_logits(labeller.logits(pictures[rows]), s[rows])
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return labeller.eval().requires_grad_(False)


@torch.no_grad()
def labelled(world: KnownWorld, labeller: WorldLabeller, w_plus: Tensor) -> Tensor:
    """The labeller's scores [N, A] of the codes' pictures."""
    return torch.cat([torch.sigmoid(labeller.logits(world.synthesize(part))) for part in w_plus.split(1024)])


class WorldWitness:
    """`map_training.Witness` of a world: what its labeller reads, and the direction of n as the embedding.

    Args:
        world: The world.
        labeller: Its labeller.
        codes: The training set [N, L, D].
    """

    def __init__(self, world: KnownWorld, labeller: WorldLabeller, codes: Tensor) -> None:
        self.world, self.labeller, self.codes = world, labeller, codes

    @property
    def knows_people(self) -> bool:
        """Yes: n is the identity."""
        return True

    @property
    def dimensions(self) -> int:
        """24, those of n."""
        return 24

    @property
    def further(self) -> int:
        """None: the labeller knows just what is edited."""
        return 0

    def beside(self, rows: Tensor, w_plus: Tensor) -> Tensor:
        """Row numbers [b] -> scores [b, 0]."""
        del w_plus
        return torch.zeros(len(rows), 0)

    def describe(self, rows: Tensor, w_plus: Tensor | None = None) -> Tensor:
        """Row numbers [b] -> unit embeddings [b, 24]; the codes are those of the training set."""
        del w_plus
        return F.normalize(self.world.factors(self.codes[rows])[1], dim=1)

    def look(self, w_plus: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [b, L, D] -> labeller's scores [b, A], unit embeddings [b, 24]."""
        scores = labelled(self.world, self.labeller, w_plus)
        return scores, F.normalize(self.world.factors(w_plus)[1], dim=1)
