"""Error of every editor against the true counterfactual, in a world where it is known (tests/known_world.py).

    error = |w' - w*| / |w* - w|     w* the code of the same person at s'; 1 = no edit at all

Every held-out code is asked for each attribute in turn, at a drawn value; s is what the labeller reads, and
the true s in a second table. Beside the error: `straight`, what is left of it had each edit the best length
(the sine of the angle between edit and true edit: no choice of strength matters); `reach`, |phi| by which the
attribute misses its target; `leak`, mean |phi| by which the others moved; `identity`, root mean square change
of the person's 24 numbers. True factors are measured, not read. Each seed is another world.

The edit map is told the direction of n of the training set's pictures, as the product has an
identity network; "no witness" and every baseline are not. In the third table identity is
not correlated with attributes.

Usage: `python benchmarks/bench_known_world.py [--seeds 3] [--quick] [--json]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.known_world_editors import (  # noqa: E402
    MAP,
    Edit,
    corrected,
    directions,
    edit_map,
    first_generation,
    principal,
    published,
    regression,
)
from sdflow_core.method.condition import features  # noqa: E402
from tests.known_world import A, KnownWorld, WorldLabeller, WorldWitness, labelled, taught_labeller  # noqa: E402

LEAST = 0.5  # of |phi(s') - phi(s)|: relative errors of hardly any edit say nothing
FIGURES = ("error", "mean_error", "straight", "reach", "leak", "identity")


@dataclass(frozen=True)
class Sizes:
    """How much is computed."""

    people: int = 8000
    asked: int = 500
    labeller_steps: int = 500
    flow_steps: int = 800
    paper_steps: int = 200  # .18 CPU seconds each, a step of the principal flow .011
    first_steps: int = 400


QUICK = Sizes(people=500, asked=40, labeller_steps=40, flow_steps=30, paper_steps=3, first_steps=3)


@dataclass(frozen=True)
class Questions:
    """What is asked of held-out people, and the true answers."""

    w: Tensor  # [Q, L, D]
    s: Tensor  # [Q, A] as the editor is told
    after: Tensor  # [Q, A] as the editor is told
    truth: Tensor  # [Q, A] true s' of the answer
    answer: Tensor  # [Q, L, D]
    which: Tensor  # [Q] attribute


def ask(world: KnownWorld, w: Tensor, told: Tensor, seed: int) -> Questions:
    """Each code once for each attribute, at a value drawn from [0.05, 0.95] that is not what it has."""
    rng = torch.Generator().manual_seed(seed)
    true = world.factors(w)[0]
    parts: list[tuple[Tensor, ...]] = []
    for a in range(A):
        goal = 0.05 + 0.9 * torch.rand(len(w), generator=rng)
        other = torch.where(true[:, a] > 0.5, 0.1, 0.9)
        goal = torch.where((features(goal) - features(true[:, a])).abs() < LEAST, other, goal)
        after, truth = told.clone(), true.clone()
        after[:, a], truth[:, a] = goal, goal
        parts.append((w, told, after, truth, world.counterfactual(w, truth), torch.full((len(w),), a)))
    return Questions(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def measure(world: KnownWorld, asked: Questions, edit: Edit) -> dict[str, float]:
    """All figures of one editor."""
    edited = torch.cat(
        [
            edit(*group)
            for group in zip(asked.w.split(1000), asked.s.split(1000), asked.after.split(1000), strict=True)
        ]
    )
    got, wanted = (edited - asked.w).flatten(1), (asked.answer - asked.w).flatten(1)
    error = (got - wanted).norm(dim=1) / wanted.norm(dim=1)
    cosine = torch.cosine_similarity(got, wanted, dim=1).clamp(0, 1)
    s, n = world.factors(edited)
    missed = (features(s) - features(asked.truth)).abs()
    own = missed.gather(1, asked.which[:, None])[:, 0]
    moved = n - world.factors(asked.w)[1]
    return {
        "error": float(error.median()),
        "mean_error": float(error.mean()),
        "straight": float((1 - cosine.square()).sqrt().median()),
        "reach": float(own.mean()),
        "leak": float((missed.sum(1) - own).mean()) / (A - 1),
        "identity": float(moved.square().mean(1).sqrt().mean()),
    }


def rows_of(
    world: KnownWorld,
    labeller: WorldLabeller,
    codes: Tensor,
    scores: Tensor,
    seed: int,
    sizes: Sizes,
    full: bool,
) -> dict[str, Callable[[], Edit]]:
    """Editors by name, in the order of the table; `full` with those that are measured on one seed only."""
    steps = sizes.flow_steps
    witness = WorldWitness(world, labeller, codes)
    made: dict[str, Any] = {}

    def flow() -> Any:
        return made.setdefault("flow", principal(codes, scores, steps, seed))

    def mapped(witness: WorldWitness | None, **changed: float) -> Edit:
        return edit_map(flow(), codes, scores, witness, steps, seed, MAP.model_copy(update=changed))

    rows: dict[str, Callable[[], Edit]] = {
        "no edit": lambda: lambda w, s, after: w,
        "logistic direction": lambda: directions(codes, scores, project=False),
        "  with projection": lambda: directions(codes, scores, project=True),
        "regression on phi(s)": lambda: regression(codes, scores),
        "SDFlow as published": lambda: published(
            codes, scores, world, labeller, sizes.paper_steps, seed, joint=True
        ),
        "principal flow": lambda: corrected(flow()),
        "edit map, no witness": lambda: mapped(None),
        "edit map": lambda: mapped(witness),
    }
    if full:
        rows["paper flow, frozen scores"] = lambda: published(
            codes, scores, world, labeller, sizes.paper_steps, seed, joint=False
        )
        rows["first generation"] = lambda: first_generation(
            codes, scores, world, labeller, sizes.first_steps, seed
        )
        for term in ("aim", "hold", "identity", "kept"):
            rows[f"  map without {term}"] = lambda term=term: mapped(witness, **{term: 0.0})
    return rows


def table(
    seed: int, sizes: Sizes, *, full: bool, true_scores: bool = False, confounded: bool = True
) -> dict[str, dict[str, float]]:
    """Teach and measure all rows in one world."""
    world = KnownWorld(seed, confounded=confounded)
    labeller = taught_labeller(world, steps=sizes.labeller_steps, seed=seed)

    def scores_of(w: Tensor) -> Tensor:
        return world.factors(w)[0] if true_scores else labelled(world, labeller, w)

    codes, held_out = world.sample(sizes.people, seed=1), world.sample(sizes.asked, seed=2)
    scores = scores_of(codes)
    asked = ask(world, held_out, scores_of(held_out), seed=3)
    found: dict[str, dict[str, float]] = {}
    for name, make in rows_of(world, labeller, codes, scores, seed, sizes, full).items():
        started = time.perf_counter()
        edit = make()
        taught = time.perf_counter() - started
        found[name] = {**measure(world, asked, edit), "seconds": taught}
        said = " ".join(f"{figure} {found[name][figure]:.3f}" for figure in FIGURES)
        print(f"  {name:28} {said} ({taught:.0f} s)", flush=True)
    return found


def summary(tables: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float | int]]:
    """Mean over the seeds and half of the range of the error."""
    out: dict[str, dict[str, float | int]] = {}
    for name in dict.fromkeys(name for one in tables for name in one):
        seen = [one[name] for one in tables if name in one]
        out[name] = {figure: round(statistics.fmean(one[figure] for one in seen), 4) for figure in FIGURES}
        errors = [one["error"] for one in seen]
        out[name]["spread"] = round((max(errors) - min(errors)) / 2, 4)
        out[name]["seeds"] = len(seen)
    return out


def show(title: str, rows: dict[str, dict[str, float | int]]) -> None:
    """Print one table."""
    heads = ("error", "+-", "mean", "straight", "reach", "leak", "identity")
    print(f"\n{title}\n{'':28} " + " ".join(f"{head:>8}" for head in heads))
    for name, row in rows.items():
        print(
            f"{name:28} {row['error']:8.3f} {row['spread']:8.3f} {row['mean_error']:8.3f}"
            f" {row['straight']:8.3f} {row['reach']:8.3f} {row['leak']:8.3f} {row['identity']:8.3f}"
            f"   {row['seeds']} seeds"
        )


def run(seeds: int, sizes: Sizes, *, extras: bool) -> dict[str, Any]:
    """All tables."""
    read = summary([table(seed, sizes, full=seed == 0) for seed in range(seeds)])
    show("s as the labeller reads it", read)
    facts: dict[str, Any] = {"seeds": seeds, "people": sizes.people, "asked": sizes.asked * A, "read": read}
    if extras:
        facts["true"] = summary([table(0, sizes, full=False, true_scores=True)])
        show("true s", facts["true"])
        facts["free"] = summary([table(0, sizes, full=False, confounded=False)])
        show("s as read, identity not correlated with attributes", facts["free"])
    rivals = {
        name: row["error"] for name, row in read.items() if not name.strip().startswith(("edit map", "map"))
    }
    best = min(rivals, key=lambda name: rivals[name])
    facts["error_ratio"] = round(read["edit map"]["error"] / read["SDFlow as published"]["error"], 4)
    facts["error_ratio_to_best_rival"] = round(read["edit map"]["error"] / rivals[best], 4)
    facts["best_rival"] = best
    for name in ("error_ratio", "error_ratio_to_best_rival", "best_rival"):
        print(f"{name:28} {facts[name]}")
    return facts


def main() -> None:
    """Print the tables; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes; the figures mean nothing"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    if options.quick:
        facts = run(1, QUICK, extras=False)
    else:
        facts = run(options.seeds, Sizes(), extras=True)
    facts["took_seconds"] = round(time.perf_counter() - started, 1)
    print(f"{facts['took_seconds']} s")
    if options.json:
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
