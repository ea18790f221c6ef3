"""The world with known answers keeps its word; the flow is nearer to the truth than a direction."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.bench_known_world import QUICK, ask, measure, run
from benchmarks.known_world_editors import corrected, directions, principal
from sdflow_core.method.semantic_encoder import SemanticEncoder
from tests.known_world import (
    ATTRIBUTES,
    NUISANCE,
    A,
    KnownWorld,
    WorldWitness,
    labelled,
    taught_labeller,
)

EXACT = KnownWorld(0, dtype=torch.float64)


def somebody_else(w: Tensor, seed: int) -> Tensor:
    """Attributes to ask of these codes, away from the edges."""
    rng = torch.Generator().manual_seed(seed)
    return (0.1 + 0.8 * torch.rand(len(w), A, generator=rng)).to(w)


def test_the_map_is_invertible_in_closed_form_and_deterministic() -> None:
    w = EXACT.sample(500, seed=1)
    assert (EXACT.code(EXACT.source(w)) - w).abs().max() < 1e-9
    u = torch.randn(500, w[0].numel(), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert (EXACT.source(EXACT.code(u)) - u).abs().max() < 1e-9
    assert torch.equal(KnownWorld(0, dtype=torch.float64).sample(500, seed=1), w)
    assert (KnownWorld(1, dtype=torch.float64).sample(500, seed=1) - w).abs().max() > 0.1


def test_the_counterfactual_changes_s_and_nothing_else() -> None:
    w = EXACT.sample(300, seed=3)
    wanted = somebody_else(w, 4)
    made = EXACT.counterfactual(w, wanted)
    s, n = EXACT.factors(made)
    assert (s - wanted).abs().max() < 1e-9
    assert (n - EXACT.factors(w)[1]).abs().max() < 1e-9
    assert (EXACT.source(made) - EXACT.source(w))[:, A:].abs().max() < 1e-9
    assert (made - w).flatten(1).norm(dim=1).min() > 0.1


def test_counterfactuals_compose_and_asking_for_what_is_there_is_the_identity() -> None:
    w = EXACT.sample(300, seed=5)
    s = EXACT.factors(w)[0]
    there, elsewhere = somebody_else(w, 6), somebody_else(w, 7)
    assert (EXACT.counterfactual(w, s) - w).abs().max() < 1e-9
    by_way = EXACT.counterfactual(EXACT.counterfactual(w, elsewhere), there)
    assert (by_way - EXACT.counterfactual(w, there)).abs().max() < 1e-9
    # back home: from where the sigmoid is flat, its own rounding comes back magnified by 1 / (s (1 - s))
    inner = ((s > 1e-3) & (s < 1 - 1e-3)).all(1)
    assert (EXACT.counterfactual(EXACT.counterfactual(w, there), s) - w)[inner].abs().max() < 1e-9


def test_no_straight_line_edits_everybody() -> None:
    """What makes the world worth asking: the same request moves two people's codes differently."""
    w = EXACT.sample(1000, seed=8)
    s = EXACT.factors(w)[0]
    for a in range(A):
        low, high = s.clone(), s.clone()
        low[:, a], high[:, a] = 0.1, 0.9
        moved = (EXACT.counterfactual(w, high) - EXACT.counterfactual(w, low)).flatten(1)
        common = float(moved.mean(0).square().sum() / moved.square().sum(1).mean())
        assert 0.2 < common < 0.9, ATTRIBUTES[a]


def test_people_are_correlated_and_scores_pile_up() -> None:
    s, n = EXACT.factors(EXACT.sample(20_000, seed=9))
    g = torch.logit(s)
    assert ((s < 0.1) | (s > 0.9)).double().mean() > 0.4
    between = torch.corrcoef(g.T) - torch.eye(A)
    with_identity = torch.corrcoef(torch.cat([g, n], 1).T)[:A, A:]
    assert between.abs().max() > 0.2
    assert 0.05 < with_identity.square().mean().sqrt() < 0.3
    free = KnownWorld(0, confounded=False, dtype=torch.float64)
    s, n = free.factors(free.sample(20_000, seed=9))
    assert torch.corrcoef(torch.cat([torch.logit(s), n], 1).T)[:A, A:].abs().max() < 0.05


def test_every_factor_is_seen_and_the_pictures_have_gradients() -> None:
    w = EXACT.sample(20, seed=10)
    u = EXACT.source(w)
    pictures = EXACT.synthesize(w)
    assert pictures.shape == (20, 3, 32, 32) and pictures.abs().max() <= 1
    for k in range(A + NUISANCE):
        other = u.clone()
        other[:, k] += 0.5
        assert (EXACT.synthesize(EXACT.code(other)) - pictures).abs().amax((1, 2, 3)).min() > 1e-3, k
    w.requires_grad_()
    EXACT.synthesize(w).square().sum().backward()
    assert w.grad is not None and torch.isfinite(w.grad).all() and (w.grad != 0).any(2).all()


def test_the_labeller_reads_s_from_pictures_and_starts_a_semantic_encoder() -> None:
    world = KnownWorld(0)
    labeller = taught_labeller(world, steps=200)
    w = world.sample(1000, seed=11)
    s = world.factors(w)[0]
    read = labelled(world, labeller, w)
    assert (read - s).abs().mean() < 0.1
    for a in range(A):
        assert torch.corrcoef(torch.stack([read[:, a], s[:, a]]))[0, 1] > 0.9
    copy = SemanticEncoder.warm_start(labeller)
    assert torch.allclose(copy(world.synthesize(w[:5])), read[:5], atol=1e-5)
    assert copy.attributes == ATTRIBUTES
    scores, embedded = WorldWitness(world, labeller, w).look(w[:7])
    assert torch.allclose(scores, read[:7], atol=1e-5)
    assert torch.allclose(embedded, WorldWitness(world, labeller, w).describe(torch.arange(7)))
    assert torch.allclose(embedded.norm(dim=1), torch.ones(7), atol=1e-5)


def test_the_principal_flow_is_nearer_to_the_truth_than_a_direction() -> None:
    world = KnownWorld(0, confounded=False)
    codes, held_out = world.sample(3000, seed=1), world.sample(150, seed=2)
    scores, told = world.factors(codes)[0], world.factors(held_out)[0]
    asked = ask(world, held_out, told, seed=3)
    assert measure(world, asked, lambda w, s, after: w)["error"] == 1.0
    truth = measure(world, asked, lambda w, s, after: world.counterfactual(w, after))
    assert max(truth.values()) < 1e-3
    direction = measure(world, asked, directions(codes, scores, project=True))
    ours = measure(world, asked, corrected(principal(codes, scores, steps=150, seed=0)))
    print(direction, ours)
    assert ours["error"] < 0.85 * direction["error"]
    assert ours["straight"] < 0.8 * direction["straight"]


def test_the_benchmark_runs_through_all_its_rows() -> None:
    facts = run(1, QUICK, extras=False)
    assert facts["read"]["no edit"]["error"] == 1.0
    assert len(facts["read"]) == 14
    for name, row in facts["read"].items():
        assert 0 < row["error"] < 20, name
    assert facts["asked"] == QUICK.asked * A
