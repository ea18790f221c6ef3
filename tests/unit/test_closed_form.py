"""Slopes that stand out stay, slopes that are noise go, and other people's z says less of s."""

from __future__ import annotations

import torch
from torch import Tensor

from sdflow_core.method.closed_form import principal_directions, shrunk_slopes
from sdflow_core.method.code_source import TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.condition import attributes_of, features
from sdflow_core.method.principal import PrincipalConfig, PrincipalFlow

ROWS, DIM, SEEN = 4, 24, 600  # 96 numbers, so few codes that a regression is noisy


def people(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first attribute moves the code along one direction, the second moves nothing."""
    rng = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, 2, generator=rng).clamp(-1.9, 1.9)
    flat = torch.randn(n, ROWS * DIM, generator=rng)
    flat[:, 0] += 2.0 * phi[:, 0]
    return flat.unflatten(1, (ROWS, DIM)), attributes_of(phi)


def plain(codes: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(slopes without shrinking, xx, centred codes)."""
    x = torch.cat([torch.ones(len(s), 1), features(s)], dim=1).double()
    flat = (codes - codes.mean(0)).flatten(1).double()
    return torch.linalg.lstsq(x, flat).solution, x.T @ x, flat


def test_noise_goes_and_what_stands_out_stays() -> None:
    codes, s = people(SEEN, 0)
    slopes, xx, flat = plain(codes, s)
    basis = principal_directions(flat, 64)
    one = torch.ones((), dtype=torch.float64)
    shrunk = shrunk_slopes(slopes, xx, basis, one.expand(64), one)
    assert shrunk[2].norm() < 0.35 * slopes[2].norm()
    assert abs(float(shrunk[1, 0] / slopes[1, 0]) - 1) < 0.1


def test_the_regression_still_passes_through_the_means() -> None:
    codes, s = people(SEEN, 0)
    slopes, xx, flat = plain(codes, s)
    one = torch.ones((), dtype=torch.float64)
    shrunk = shrunk_slopes(slopes, xx, principal_directions(flat, 64), one.expand(64), one)
    mean = xx[0] / xx[0, 0]
    assert torch.allclose(mean @ shrunk, mean @ slopes, atol=1e-9)


def test_the_codes_of_others_say_less_of_s_after_whitening() -> None:
    codes, s = people(SEEN, 0)
    others, their_s = people(4000, 1)
    flow = PrincipalFlow(ROWS, DIM, 2, PrincipalConfig(directions=64))
    flow.fit(survey(TensorSource(codes, s)))
    fitted = flow.slopes.clone()
    slopes, _, _ = plain(codes, s)

    def left() -> Tensor:
        """Length of the regression of z on phi(s): the shift of the mean that a linear probe can find."""
        z = flow.to_base(others, their_s)
        return torch.stack([row.norm() for row in plain(z, their_s)[0][1:]])

    shrunk = left()
    flow.slopes.copy_(slopes)
    unshrunk = left()
    assert not torch.equal(fitted, slopes.float())
    assert shrunk[1] < 0.6 * unshrunk[1]  # an attribute without any slope
    assert shrunk[0] < 1.1 * unshrunk[0]  # one whose slope stands out loses next to nothing of it
