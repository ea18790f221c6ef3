"""The residual: what the reconstruction missed survives where an edit changed nothing, and only there."""

from __future__ import annotations

import torch

from sdflow_core.method.residual import carried, changed_little

SIDE = 64


def _pictures() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reconstructions, edits that change a patch of the middle, and crops with a detail in a corner."""
    rng = torch.Generator().manual_seed(0)
    before = 0.5 * torch.rand(3, 3, SIDE, SIDE, generator=rng) - 0.25
    after = before.clone()
    after[:, :, 28:36, 28:36] += 0.4
    crop = before + 0.05 * torch.randn(before.shape, generator=rng)
    crop[:, :, 4:8, 4:8] = 0.9
    crop[:, :, 30:34, 30:34] = -0.9  # a detail of what the edit replaces
    return before, after, crop.clamp(-1, 1)


def test_outside_of_what_changed_the_source_survives_and_inside_the_edit_stands() -> None:
    before, after, crop = _pictures()
    out = carried(before, after, crop)
    mask = changed_little(before, after)
    assert mask.shape == (3, 1, SIDE, SIDE) and 0.0 <= float(mask.min()) <= float(mask.max()) == 1.0
    outside = (mask == 1.0).expand_as(out)
    assert float(outside.float().mean()) > 0.5
    assert torch.allclose(out[outside], crop[outside], atol=1e-6)
    assert torch.allclose(out[:, :, 4:8, 4:8], torch.tensor(0.9), atol=1e-6), "the detail is still there"
    assert torch.allclose(out[:, :, 30:34, 30:34], after[:, :, 30:34, 30:34], atol=0.01)


def test_an_edit_that_changes_nothing_is_the_crop() -> None:
    before, _, crop = _pictures()
    assert torch.allclose(carried(before, before, crop), crop, atol=1e-6)
    assert torch.equal(changed_little(before, before), torch.ones(3, 1, SIDE, SIDE))


def test_more_change_carries_less_and_no_pixel_leaves_its_range() -> None:
    before, after, crop = _pictures()
    more = before + 2.0 * (after - before)
    assert (changed_little(before, more) <= changed_little(before, after)).all()
    assert carried(before, more.clamp(-1, 1), crop).abs().max() <= 1.0


def test_a_picture_hangs_on_itself() -> None:
    before, after, crop = _pictures()
    whole = carried(before, after, crop)
    again = carried(before.flip(0), after.flip(0), crop.flip(0)).flip(0)
    assert torch.equal(whole, again)
