"""An algebraically reversible scheme: the way back undoes the way there to rounding, on any grid.

McCallum and Foster, "Efficient, accurate and stable gradients for neural ODEs" (arXiv 2410.11648), eq. 4 and
5. The state is a pair (y, x) that starts as (y, y). With Psi_h(t, y) the increment of any Runge-Kutta step,

    y_{n+1} = c y_n + (1 - c) x_n + Psi_h(t_n, x_n)          x_{n+1} = x_n - Psi_{-h}(t_{n+1}, y_{n+1})

and backwards, exactly,

    x_n = x_{n+1} + Psi_{-h}(t_{n+1}, y_{n+1})
    y_n = (y_{n+1} - (1 - c) x_n - Psi_h(t_n, x_n)) / c

**z and density are those of y.** x is a second approximation of the same point; it differs from y by the
error of the scheme, and without it y cannot come home exactly: whoever wants the exact return keeps the
pair. The division by the coupling c amplifies rounding by c^-n over n steps. And coming home proves nothing
about where one has
been: on a loose grid the pair returns to rounding while y is far from the solution
(`tests/unit/test_reversible.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdflow_core.method.fixed_grid import TABLEAUS, Base, Field, State, grid_times, one_step
from sdflow_core.records.errors import ContractError


@dataclass(frozen=True)
class Scheme:
    """A reversible walk from t0 to t1.

    Attributes:
        t0: Start.
        t1: End; below t0 the walk runs backwards in time.
        steps: Equal steps.
        base: Runge-Kutta method of Psi; a step costs two of its steps.
        coupling: c in (0, 1].

    Raises:
        ContractError: No step, or another coupling.
    """

    t0: float
    t1: float
    steps: int
    base: Base = "midpoint"
    coupling: float = 0.999

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0.0 < self.coupling <= 1.0:
            raise ContractError(
                "reversible scheme",
                expected="at least one step, coupling in (0, 1]",
                found=f"{self.steps} steps, coupling {self.coupling}",
            )

    @property
    def h(self) -> float:
        """Length of a step, with its sign."""
        return (self.t1 - self.t0) / self.steps


@dataclass(frozen=True)
class Pair:
    """The state of the scheme: y is the solution, x what it takes to come home."""

    y: State
    x: State


def start(*y: Tensor) -> Pair:
    """The pair at the beginning of a walk: both are y0."""
    return Pair(y, y)


def there(field: Field, pair: Pair, scheme: Scheme) -> Pair:
    """From the pair at t0 to the pair at t1. Gradients, if any, by plain backpropagation.

    Example:
        >>> scheme = Scheme(0.0, 1.0, steps=4)
        >>> first = start(torch.ones(1, dtype=torch.float64))
        >>> end = there(lambda t, y: (-y[0],), first, scheme)
        >>> home = back(lambda t, y: (-y[0],), end, scheme)
        >>> bool((home.y[0] - 1).abs() < 1e-14), round(float(end.y[0]), 2)
        (True, 0.37)
    """
    y, x, c, h = pair.y, pair.x, scheme.coupling, scheme.h
    tableau = TABLEAUS[scheme.base]
    for forth, aback in _stage_times(scheme, y[0]):
        y = one_step(field, tableau, forth, x, h, _mix(y, x, c))
        x = _minus(x, one_step(field, tableau, aback, y, -h, _zeros(y)))
    return Pair(y, x)


def back(field: Field, pair: Pair, scheme: Scheme) -> Pair:
    """From the pair at t1 to the pair at t0: the inverse of `there` with the same scheme, to rounding."""
    y, x = pair.y, pair.x
    tableau = TABLEAUS[scheme.base]
    for forth, aback in reversed(_stage_times(scheme, y[0])):
        x = one_step(field, tableau, aback, y, -scheme.h, x)
        y = _unmix(y, x, one_step(field, tableau, forth, x, scheme.h, _zeros(x)), scheme.coupling)
    return Pair(y, x)


def solve(field: Field, y0: State, scheme: Scheme, parameters: Sequence[Tensor] | None = None) -> Pair:
    """`there` from (y0, y0), with gradients in memory that does not grow with the number of steps.

    Only the pair at t1 is kept; the way back to t0 is walked again while gradients are gathered. They are
    those of backpropagation through the same steps, to rounding.

    Args:
        field: Velocity.
        y0: Start, tuple of tensors.
        scheme: The walk.
        parameters: Every tensor other than the state whose gradient is wanted through `field`. None finds the
            leaves that one evaluation of the field reaches; name them where the condition is itself computed
            by a large network, or its graph is walked once a stage.

    Returns:
        The pair at t1, differentiable once.
    """
    if not torch.is_grad_enabled():
        return there(field, start(*y0), scheme)
    wanted = (
        captured(field, torch.as_tensor(scheme.t0, dtype=y0[0].dtype, device=y0[0].device), y0)
        if parameters is None
        else tuple(tensor for tensor in parameters if tensor.requires_grad)
    )
    if not wanted and not any(part.requires_grad for part in y0):
        with torch.no_grad():
            return there(field, start(*y0), scheme)
    apply = cast(Callable[..., tuple[Tensor, ...]], _Walk.apply)
    ends = apply(field, scheme, len(y0), *y0, *wanted)
    return Pair(ends[: len(y0)], ends[len(y0) :])


def captured(field: Field, t: Tensor, y: State) -> tuple[Tensor, ...]:
    """Leaves that want a gradient and that one evaluation of the field reaches, the state aside."""
    with torch.enable_grad():
        at = tuple(part.detach().requires_grad_() for part in y)
        slopes = field(t, at)
    own = {id(part) for part in at}
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    todo: list[Any] = [slope.grad_fn for slope in slopes if slope.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in own:
            found[id(leaf)] = leaf
        todo.extend(following for following, _ in node.next_functions if following is not None)
    return tuple(found.values())


class _Walk(torch.autograd.Function):
    """`there` from (y0, y0); backward reconstructs each step's pair from the one after it."""

    @staticmethod
    def forward(ctx: Any, field: Field, scheme: Scheme, size: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        y0, parameters = tensors[:size], tensors[size:]
        end = there(field, start(*y0), scheme)
        ctx.field, ctx.scheme, ctx.size = field, scheme, size
        ctx.save_for_backward(*end.y, *end.x, *parameters)
        return (*end.y, *end.x)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Any, ...]:
        scheme: Scheme = ctx.scheme
        size: int = ctx.size
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        y, x, parameters = saved[:size], saved[size : 2 * size], saved[2 * size :]
        gy, gx = grads[:size], grads[size:]
        sums: list[Tensor | None] = [None] * len(parameters)
        tableau, c, h = TABLEAUS[scheme.base], scheme.coupling, scheme.h

        def increment(times: Tensor, at: State, length: float, weight: State) -> tuple[State, State]:
            """Psi at `at`, and its product with `weight`; the parameters' share goes to `sums`."""
            with torch.enable_grad():
                leaf = tuple(part.detach().requires_grad_() for part in at)
                psi = one_step(ctx.field, tableau, times, leaf, length, _zeros(leaf))
            pulled = _pull(psi, (*leaf, *parameters), weight)
            for i, part in enumerate(pulled[size:]):
                if part is not None:
                    known = sums[i]
                    sums[i] = part if known is None else known + part
            slopes = tuple(
                torch.zeros_like(a) if part is None else part
                for a, part in zip(at, pulled[:size], strict=True)
            )
            return tuple(part.detach() for part in psi), slopes

        for forth, aback in reversed(_stage_times(scheme, y[0])):
            psi, pulled = increment(aback, y, -h, tuple(-part for part in gx))
            x = tuple(a + b for a, b in zip(x, psi, strict=True))
            gy = tuple(a + b for a, b in zip(gy, pulled, strict=True))
            psi, pulled = increment(forth, x, h, gy)
            y = _unmix(y, x, psi, c)
            gx = tuple(a + (1.0 - c) * b + d for a, b, d in zip(gx, gy, pulled, strict=True))
            gy = tuple(c * part for part in gy)
        start_grads = (a + b for a, b in zip(gy, gx, strict=True))  # both begin as y0
        return (None, None, None, *start_grads, *sums)


def _pull(outputs: State, inputs: State, weight: State) -> tuple[Tensor | None, ...]:
    pick: Callable[..., tuple[Tensor | None, ...]] = torch.autograd.grad
    live = [(out, w) for out, w in zip(outputs, weight, strict=True) if out.requires_grad]
    if not live:
        return tuple(None for _ in inputs)
    # what the field captured may have a graph of its own, which the next stage needs again
    return pick(
        [out for out, _ in live],
        inputs,
        grad_outputs=[w for _, w in live],
        allow_unused=True,
        retain_graph=True,
    )


def _stage_times(scheme: Scheme, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each step: times of the stages of Psi_h from its start, and of Psi_{-h} from its end."""
    tableau = TABLEAUS[scheme.base]
    forth = grid_times(scheme.t0, scheme.t1, scheme.steps, tableau, like)
    aback = grid_times(scheme.t1, scheme.t0, scheme.steps, tableau, like).flip(0)
    return list(zip(forth, aback, strict=True))


def _zeros(state: State) -> State:
    return tuple(torch.zeros_like(part) for part in state)


def _minus(state: State, change: State) -> State:
    return tuple(a - b for a, b in zip(state, change, strict=True))


def _mix(y: State, x: State, c: float) -> State:
    return tuple(c * a + (1.0 - c) * b for a, b in zip(y, x, strict=True))


def _unmix(y: State, x: State, psi: State, c: float) -> State:
    return tuple((a - (1.0 - c) * b - p) / c for a, b, p in zip(y, x, psi, strict=True))
