"""Edits and training steps of the flow against the published way, on one set of trained weights, in one run.

Usage: `python benchmarks/bench_flow.py [--wplus FOLDER] [--rounds 3] [--json]`

Reference: dopri5 at 1e-5 both ways with Hutchinson's divergence. `edit`: the same weights by a mirrored
scheme, state path only; `edit4`: four edits of one image, the way there computed once. Schemes called fitted
have their numbers bent to the flow on training codes; the codes that are edited have no part in it. Nor have
they in what tells which rows are walked again by a finer scheme (`row_adaptive.py`). `--product`: whose
matrix products the schemes use, torch's or those of numpy's BLAS; the reference is torch's in any case.
`default`: principal flow (z) and edit map. All rows are timed in turn (A B A B ..), medians; ratios are
images a second against the reference. `max_dw` is over the batch and the one edit that is timed, `max_dw4`
over its four edits; a scheme holds the bound only where both do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import flow_codes
import torch
from flow_reference import PublishedField, published_edit, published_step
from flow_training import (
    FAST_TRAINING,
    FRUGAL_TRAINING,
    fast_step,
    fitted_principal,
    matching_step,
    peak_bytes,
    trained_published,
)
from torch import Tensor

from sdflow_core.method.condition import features
from sdflow_core.method.edit_map import EditMap, EditMapConfig
from sdflow_core.method.flow import PAPER_FLOW, ConditionalFlow
from sdflow_core.method.mirrored import (
    MirroredScheme,
    as_numbers,
    classical,
    from_numbers,
    retrace,
    trace,
)
from sdflow_core.method.principal import PrincipalFlow
from sdflow_core.method.row_adaptive import Effort, RowAdaptive, adapted, edited
from sdflow_core.method.row_adaptive import as_numbers as adaptive_numbers
from sdflow_core.method.row_field import RowFlow
from sdflow_core.method.scheme_fit import fitted
from sdflow_core.method.solvers import SolverConfig

Clock = Callable[[], float]


def asked(s: Tensor) -> list[Tensor]:
    """s' of four edits: each attribute alone, flipped to .9 or .1."""
    out: list[Tensor] = []
    for i in range(s.shape[1]):
        after = s.clone()
        after[:, i] = torch.where(s[:, i] > 0.5, 0.1, 0.9)
        out.append(after)
    return out


def in_turn(cases: dict[str, Callable[[], object]], rounds: int, clock: Clock) -> dict[str, float]:
    """Median seconds of each case, A B A B."""
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, work in cases.items():
            started = clock()
            work()
            taken[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


Scheme = MirroredScheme | RowAdaptive
FIT, ADAPT = 768, 6144  # codes that a scheme and the choice of its hard rows are fitted on


@torch.no_grad()
def schemes(
    flow: ConditionalFlow, codes: flow_codes.Codes, rounds: int, known: Path | None
) -> dict[str, Scheme]:
    """Schemes of rising cost: two steps, one bent to this flow on training codes, with and without its hard
    rows walked again, three steps, four."""
    two, four = classical([0.5, 1.0]), classical([0.25, 0.5, 0.75, 1.0])
    out: dict[str, Scheme] = {"2 steps": two}
    if rounds:
        alone = ConditionalFlow(1, flow.dim, flow.attributes, flow.config)  # single rows: an 18th of the cost
        alone.load_state_dict(flow.state_dict() | {"mean": flow.mean[:1], "std": flow.std[:1]})
        rows = RowFlow(alone)
        rng = torch.Generator().manual_seed(5)
        count = FIT + ADAPT
        # the first half are samples; the second is blended of the very codes that are edited
        picked = torch.randint(len(codes.train) // 2, (count,), generator=rng)
        row = torch.randint(flow.rows, (count,), generator=rng)
        w, s = codes.train[picked, row][:, None], codes.s_train[picked]
        after = torch.stack(asked(s))[torch.randint(s.shape[1], (count,), generator=rng), torch.arange(count)]
        coarse, fine = (
            retrace(rows, trace(rows, w[:FIT], s[:FIT], scheme), after[:FIT], scheme)
            for scheme in (two, four)
        )
        # half of the codes to fit on are those that a loose grid misses most: the bound is on the worst
        order = (coarse - fine).abs().flatten(1).amax(1).argsort(descending=True)
        kept = torch.cat([order[:64], order[64:][torch.randperm(FIT - 64, generator=rng)[:64]]])
        name, began = "8 evaluations a way, fitted", time.perf_counter()
        if known and known.exists():
            bent = from_numbers(json.loads(known.read_text()))
        else:
            bent = fitted(alone, classical([0.45, 1.0]), w[kept], s[kept], after[kept], rounds=rounds)
        if known:
            known.write_text(json.dumps(as_numbers(bent)))
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        began = time.perf_counter()
        by = adapted(rows, bent, w[FIT:], s[FIT:], after[FIT:])
        print(
            f"hard rows: estimate >= {by.limit:.1e}, again with {len(by.finer.times)} evaluations a way; "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
        out |= {name: bent, "8 fitted, hard rows again": by}
    return out | {"3 steps": classical([1 / 3, 2 / 3, 1.0]), "4 steps": four}


def edits(
    flow: ConditionalFlow,
    principal: PrincipalFlow,
    codes: flow_codes.Codes,
    offered: dict[str, Scheme],
    rounds: int,
    clock: Clock,
    product: Literal["torch", "numpy"],
) -> dict[str, float | str]:
    """Rows of the edit table. The quickest scheme that holds max |dw| <= 1e-3 gives `edit_ratio`."""
    w, s = codes.held, codes.s_held
    wanted = asked(s)
    one, four = wanted[1], torch.cat(wanted)
    reference = PublishedField(flow)
    reference.probe = torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    fast = RowFlow(flow, product)
    edit_map = EditMap(len(principal.spread), s.shape[1], EditMapConfig()).eval()
    phi = features(s)

    @torch.no_grad()
    def fast_edit(after: Tensor, scheme: Scheme, effort: Effort | None = None) -> Tensor:
        if isinstance(scheme, RowAdaptive):
            return edited(fast, w, s, after, scheme, effort)
        return retrace(fast, trace(fast, w, s, scheme), after, scheme)

    @torch.no_grad()
    def default_edit(after: Tensor) -> Tensor:
        z = principal.to_base(w, s)  # once an image, whatever the number of edits
        many = len(after) // len(w)
        edited = edit_map(principal, w.repeat(many, 1, 1), phi.repeat(many, 1), features(after))
        return edited if bool(z.isfinite().all()) else z

    truth = torch.stack([published_edit(reference, w, s, after) for after in wanted])
    nfe = reference.calls // len(wanted)
    off: dict[str, tuple[float, ...]] = {}
    for name, scheme in offered.items():
        effort = Effort()
        each = (
            (fast_edit(four, scheme, effort).unflatten(0, truth.shape[:2]) - truth).abs().flatten(1).amax(1)
        )
        off[name] = float(each[1]), float(each.max())
        hard = f"; {effort}" if effort.rows else ""
        print(f"{name}: max |dw| {off[name][0]:.1e}, of four edits {off[name][1]:.1e}{hard}", flush=True)
    cases: dict[str, Callable[[], object]] = {"reference": lambda: published_edit(reference, w, s, one)}
    for name, scheme in offered.items():
        cases[name] = lambda scheme=scheme: fast_edit(one, scheme)
        cases[f"{name}, 4 edits"] = lambda scheme=scheme: fast_edit(four, scheme)
    cases |= {"default": lambda: default_edit(one), "default, 4 edits": lambda: default_edit(four)}
    taken = in_turn(cases, rounds, clock)
    print(f"{'':40}{'ms an edit':>12}{'ratio':>9}{'max |dw|':>11}{'of 4 edits':>12}")
    ratios: dict[str, float] = {}
    for name, seconds in taken.items():
        each = seconds / len(w) / (4 if name.endswith("4 edits") else 1)
        ratios[name] = taken["reference"] / len(w) / each
        said = "".join(f"{value:12.1e}" for value in off.get(name, ()))
        print(f"{name:40}{1e3 * each:12.3f}{ratios[name]:9.1f}{said}")
    both = [name for name in offered if max(off[name]) <= 1e-3]
    one_edit = [name for name in offered if off[name][0] <= 1e-3]
    if both or one_edit:
        chosen = max(both or one_edit, key=lambda name: ratios[name])
    else:
        chosen = min(offered, key=lambda name: max(off[name]))
    said = "" if both else " (1e-3 held by one edit, not by four)" if one_edit else " (none holds 1e-3)"
    print(f"edit: {chosen}{said}; the reference evaluates the field {nfe} times")
    return {
        "scheme": chosen,
        "edit_ratio": round(ratios[chosen], 1),
        "edit4_ratio": round(ratios[f"{chosen}, 4 edits"], 1),
        "default_edit_ratio": round(ratios["default"], 1),
        "default_edit4_ratio": round(ratios["default, 4 edits"], 1),
        "max_dw": off[chosen][0],
        "max_dw4": off[chosen][1],
        "reference_nfe": nfe,
    }


def training(
    flow: ConditionalFlow,
    principal: PrincipalFlow,
    codes: flow_codes.Codes,
    batch: int,
    rounds: int,
    clock: Clock,
) -> dict[str, float]:
    """Rows of the training table: flow terms of one step, gradients included."""
    w, s = codes.train[:batch], codes.s_train[:batch]
    after = asked(s)[1]
    reference = PublishedField(flow)
    reference.probe = torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(3)

    def gradient(step: Callable[[], float]) -> tuple[float, Tensor]:
        flow.zero_grad()
        value = step()
        return value, torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])

    def fast(solver: SolverConfig) -> Callable[[], float]:
        return lambda: fast_step(flow, w, s, after, reference.probe, solver)

    theirs, there = gradient(lambda: published_step(reference, w, s, after))
    result: dict[str, float] = {}
    for name, solver in (("train", FAST_TRAINING), ("reversible_train", FRUGAL_TRAINING)):
        ours, here = gradient(fast(solver))
        result[f"{name}_gradient_cosine"] = round(float(torch.cosine_similarity(there, here, dim=0)), 4)
        result[f"{name}_loss_difference"] = round(abs(ours - theirs), 5)
    taken = in_turn(
        {
            "published": lambda: published_step(reference, w, s, after),
            "train": fast(FAST_TRAINING),
            "reversible_train": fast(FRUGAL_TRAINING),
            "default_train": lambda: matching_step(principal, w, s, rng),
        },
        rounds,
        clock,
    )
    print(f"\n{'':18}{'ms a code':>12}{'ratio':>9}   (batch {batch})")
    for name, seconds in taken.items():
        ratio = taken["published"] / seconds
        print(f"{name:18}{1e3 * seconds / batch:12.3f}{ratio:9.1f}")
        if name != "published":
            result[f"{name}_ratio"] = round(ratio, 1)
    print(
        f"train: {FAST_TRAINING.method}, {FAST_TRAINING.steps} steps; reversible_train: "
        f"{FRUGAL_TRAINING.base}, {FRUGAL_TRAINING.steps} step; loss of the reference {theirs:.4f}"
    )
    for name in ("train", "reversible_train"):
        cosine, apart = result[f"{name}_gradient_cosine"], result[f"{name}_loss_difference"]
        print(f"{name}: cosine of the gradients {cosine:.4f}, losses apart {apart:.5f}")
    few = w[:4], s[:4], after[:4], reference.probe[:4]
    for method in ("reversible", "rk4"):
        for steps in (1, 4):
            solver = FRUGAL_TRAINING.model_copy(update={"method": method, "steps": steps})
            peak = peak_bytes(lambda solver=solver: fast_step(flow, *few, solver)) / 2**20
            print(f"peak memory of a training step, {method}, {steps} steps, batch 4: {peak:.1f} MiB")
            result[f"{method}_{steps}_mib"] = round(peak, 1)
    return result


def main() -> None:
    """Print two tables; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wplus", type=Path, help="folder with w_plus.npy and e4e_ffhq_pca.pt")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--train-batch", type=int, default=8)
    parser.add_argument(
        "--train-steps", type=int, default=300, help="steps of the published flow before timing"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--fit-rounds", type=int, default=16, help="rounds that bend schemes to the flow; 0: none"
    )
    parser.add_argument(
        "--weights", type=Path, help="keep the trained published flow here, and take it from here"
    )
    parser.add_argument("--fitted", type=Path, help="keep the fitted scheme here, and take it from here")
    parser.add_argument("--product", choices=("torch", "numpy"), default="numpy")
    parser.add_argument("--scheme", type=Path, help="write the numbers of the chosen scheme here, as JSON")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor seconds: for a shared machine, one thread",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    codes = flow_codes.load(options.wplus, batch=options.batch)
    print(f"codes: {codes.said}")
    started = time.perf_counter()
    if options.weights and options.weights.exists():
        flow = ConditionalFlow(flow_codes.ROWS, flow_codes.DIM, flow_codes.ATTRIBUTES, PAPER_FLOW).eval()
        flow.load_state_dict(torch.load(options.weights, weights_only=True))
        print(f"published flow: weights of {options.weights.name}")
    else:
        flow = trained_published(codes, options.train_steps)
        print(f"published flow: {options.train_steps} steps in {time.perf_counter() - started:.0f} s")
        if options.weights:
            torch.save(flow.state_dict(), options.weights)
    principal = fitted_principal(codes, min(50, options.train_steps))
    started = time.perf_counter()
    offered = schemes(flow, codes, options.fit_rounds, options.fitted)
    print(f"schemes: {time.perf_counter() - started:.0f} s")
    result = edits(flow, principal, codes, offered, options.rounds, clock, options.product)
    if options.scheme:
        chosen = offered[str(result["scheme"])]
        numbers = adaptive_numbers(chosen) if isinstance(chosen, RowAdaptive) else as_numbers(chosen)
        options.scheme.write_text(json.dumps(numbers))
    result |= training(flow, principal, codes, options.train_batch, options.rounds, clock)
    if options.json:
        print(json.dumps({"codes": codes.said, **result}))


if __name__ == "__main__":
    main()
