"""The search for s': what to ask of an editor so that the labeller reads what a person asked for.

Nobody asks for s'. People ask that "smiling reads 0.9 afterwards", and what an editor makes of s' = 0.9 is
another matter for every face. The search turns phi(s') (`condition.features`) of all asked attributes
together, draws, reads, and corrects by what was read. In phi the editor's answer and the labeller's logit
are nearly straight lines, so that the first try is the difference of the logits and two or three secant steps
suffice. One attribute is bracketed by the nearest tries below and above its goal. Several pull at each other:
they are corrected together, by a matrix of what each does to each reading, learned from the tries of the row
(Broyden, Mathematics of Computation 19, 1965, the first of his two updates). The best picture seen is kept,
whatever came after: a reading that does not rise evenly costs tries and never the result.

z is computed before, once for each image (`Editor.prepare`). What is asked is rounded to 2^-12, and `drawing`
asks in calls of constant size: a row gives the same bytes whatever its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdflow_core.method.condition import features
from sdflow_core.method.drawing import Look, draw_at, prepare_all
from sdflow_core.method.editor import Editor, Prepared
from sdflow_core.method.request import EditConfig, Variant, change_of
from sdflow_core.records.errors import ContractError

__all__ = [
    "Aimed",
    "Aims",
    "Look",
    "aim",
    "aims_of",
    "draw_at",
    "prepare_all",
    "strength_of",
]

_GRID = 4096.0  # what is asked is a multiple of 1 / _GRID
_LEAST_STEP, _GREATEST_STEP = 0.05, 2.0  # of phi, where nothing brackets the goal
_FLATTEST, _STEEPEST = 0.25, 4.0  # read logit / 2 by asked phi
_DAMPING = 0.003
_LEAST_SCORE = 1e-6  # logits of scores nearer to 0 or 1 say nothing
_FINER = 1  # tries that a flip may spend on less, once it is there
_HELD_REACH, _HELD_TOLERANCE, _HELD_TRIES = 1.0, 0.05, 2  # corrections of attributes that were not asked for


@dataclass(frozen=True)
class Aims:
    """What B rows ask for; attributes in the editor's order."""

    asked: Tensor  # [B, A] bool
    goal: Tensor  # [B, A] scores in [0, 1]; what is read now where nothing is asked
    flip: Tensor  # [B, A] bool: one side of the goal is as good as the goal

    def take(self, rows: Tensor) -> Aims:
        """Some rows, in the order of the index tensor."""
        return Aims(self.asked[rows], self.goal[rows], self.flip[rows])


@dataclass(frozen=True)
class Aimed:
    """Result of `aim`, rows in the order of the input."""

    w_plus: Tensor  # [B, L, D]; the input where nothing had to change, or no try gave finite numbers
    images: Tensor  # [B, 3, H, W]
    scores: Tensor  # [B, K] of these images
    phi: Tensor  # [B, A] float64, phi(s') that gave them
    strength: Tensor  # [B] see `strength_of`; 0 where nothing was changed
    tries: Tensor  # [B] int64, renderings that the row took
    reached: Tensor  # [B] bool
    capped: Tensor  # [B] bool: not reached, and some attribute was asked for at the greatest distance
    finite: Tensor  # [B] bool: False where no picture could be drawn
    why: tuple[str, ...]  # [B] what the editor's solver last said of the row, "" where it always got through


def aims_of(
    variants: Sequence[Variant], attributes: tuple[str, ...], read: Tensor, config: EditConfig
) -> Aims:
    """Requests as scores to reach.

    Args:
        variants: One for each row.
        attributes: Of the editor.
        read: Scores now [B, A], attributes in this order.
        config: `flip_to`.

    Example:
        >>> asked = [Variant(targets={"a": "+0.3"}), Variant(targets={"a": "flip"})]
        >>> aims_of(asked, ("a",), torch.tensor([[0.9], [0.2]]), EditConfig()).goal.flatten().tolist()
        [1.0, 0.9700000286102295]
    """
    asked = torch.zeros(read.shape, dtype=torch.bool)
    flip, goal = asked.clone(), read.clone()
    for row, variant in enumerate(variants):
        for name, target in variant.targets.items():
            index = attributes.index(name)
            now, change = read[row, index], change_of(target)
            asked[row, index] = True
            if target == "flip":
                flip[row, index] = True
                goal[row, index] = config.flip_to if now < 0.5 else 1.0 - config.flip_to
            else:
                goal[row, index] = float(target) if change is None else (now + change).clamp(0.0, 1.0)
    return Aims(asked, goal, flip)


def strength_of(phi: Tensor, start: Tensor, read: Tensor, aims: Aims) -> Tensor:
    """How far rows went [B]: the greatest step of an asked attribute as a share of its nominal step.

    The nominal step is the difference between the logits (halved, as in phi) of the goal and of what was read
    before, at least 0.1. 1 is an editor that does what it is asked.
    """
    nominal = (_half_logit(aims.goal) - _half_logit(read)).abs().clamp_min(0.1)
    return torch.where(aims.asked, (phi - start).abs() / nominal, 0.0).amax(1).float()


def aim(
    editor: Editor,
    prepared: Prepared,
    images: Tensor,
    scores: Tensor,
    aims: Aims,
    columns: Sequence[int],
    look: Look,
    config: EditConfig,
    lost: Sequence[bool] | None = None,
) -> Aimed:
    """Search phi(s') of every row until the labeller reads what was asked for, of all asked attributes.

    Args:
        editor: Any editor.
        prepared: Of the rows to edit, `prepare_all`.
        images: The unedited rows as `look` shows them [B, 3, H, W].
        scores: Their scores [B, K].
        aims: What is asked.
        columns: For each attribute of the editor its column of the scores.
        look: (codes [b, L, D], rows [b]) -> (images, scores); b is always `config.micro_batch`.
        config: Tries, greatest distance, tolerances.
        lost: [B] rows that are not to be drawn at all; they come back as they were, and not finite.

    Raises:
        ContractError: No rows, or parts that do not fit together.
    """
    count, width = len(prepared.w_plus), len(editor.attributes)
    shapes = {tuple(part.shape) for part in (aims.asked, aims.goal, aims.flip, prepared.s)}
    if not count or shapes != {(count, width)} or len(columns) != width or len(scores) != count:
        raise ContractError(
            "rows to aim",
            expected=f"at least one, aims and columns for {width} attributes",
            found=f"{count} rows, aims {sorted(shapes)}, {len(columns)} columns, {len(scores)} scores",
        )
    search = _Search(prepared, scores[:, list(columns)], aims, config)
    if lost is not None:
        gone = torch.tensor(lost, dtype=torch.bool, device=search.done.device)
        search.done |= gone
        search.any_finite &= ~gone
    why: dict[int, str] = {}
    best = {"w_plus": prepared.w_plus.clone(), "images": images.clone(), "scores": scores.clone()}
    for _ in range(config.tries):
        rows = torch.nonzero(~search.done)[:, 0]
        if not len(rows):
            break
        asked = search.next(rows)
        found = draw_at(editor, prepared, asked, rows, look, config.micro_batch, why)
        finite = torch.stack([torch.isfinite(part).flatten(1).all(1) for part in found]).all(0)
        better = search.saw(rows, asked, found[2][:, list(columns)], finite)
        for part, seen in zip(best.values(), found, strict=True):
            part[rows[better]] = seen[better]
    return Aimed(
        **best,
        phi=search.best_phi,
        strength=strength_of(search.best_phi, search.start, search.read, aims),
        tries=search.tries,
        reached=search.best_excess <= 0,
        capped=search.at_end & (search.best_excess > 0),
        finite=search.any_finite,
        why=tuple(why.get(row, "") for row in range(count)),
    )


class _Search:
    """Where every row stands, [B, A] float64: along each attribute `t` runs from phi(s) towards the goal.

    `y` is the reading there: what the logit (halved) went towards the goal, `wanted` what it shall go.
    """

    def __init__(self, prepared: Prepared, read: Tensor, aims: Aims, config: EditConfig) -> None:
        self.config, self.aims, self.read = config, aims, read
        self.start, self.start_read = _phi(prepared.s), _half_logit(read)
        self.side = torch.where(aims.goal >= read, 1.0, -1.0).double()
        self.wanted = self.side * (_half_logit(aims.goal) - self.start_read)
        far = torch.full_like(self.start, config.furthest)
        held = torch.full_like(self.start, _HELD_REACH)
        self.most = torch.where(aims.asked, (far - self.side * self.start).clamp_min(0.0), held)
        self.least = torch.where(aims.asked, -(far + self.side * self.start).clamp_min(0.0), -held)
        self.t, self.y = torch.zeros_like(self.start), torch.zeros_like(self.start)
        self.slope = torch.ones_like(self.start)
        count, width = self.start.shape
        # what a step of each attribute (last axis) does to the reading of each
        self.jacobian = torch.eye(width, dtype=torch.float64, device=read.device).repeat(count, 1, 1)
        self.turnable = aims.asked | config.hold
        self.several = self.turnable.sum(1) > 1
        # nearest tries on both sides of the goal; the start is one, the other is not known yet
        self.low_t, self.low_y = self.t.clone(), self.t.clone()
        self.high_t, self.high_y = self.t + torch.nan, self.t + torch.nan
        self.repeats = torch.zeros_like(self.start)  # how often the same end moved again
        self.was_low = torch.ones_like(aims.asked)
        self.tries = torch.zeros(len(read), dtype=torch.int64, device=read.device)
        self.extra = torch.zeros_like(self.tries)
        self.at_end = torch.zeros(len(read), dtype=torch.bool, device=read.device)
        self.best_phi = self.start.clone()
        every = torch.arange(len(read), device=read.device)
        self.best_excess, self.best_cost, self.turning = self._judged(every, self.start, read)
        self.done = self.best_excess <= 0
        self.any_finite = self.done.clone()

    def _judged(self, rows: Tensor, phi: Tensor, read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is missing [b] (0: all is reached), what it costs [b], and which attributes to turn [b, A]."""
        aims, side, config, read = self.aims.take(rows), self.side[rows], self.config, read.double()
        goal, slack = aims.goal.double(), 1.0 - config.flip_to
        beyond = side * (read - goal)
        # one half is the least that a flip is about, wherever it aims
        enough = -(side * (goal - 0.5)).clamp_max(slack)
        short = torch.where(
            aims.flip, (enough - beyond).clamp_min(0.0), (beyond.abs() - config.tolerance).clamp_min(0.0)
        )
        short = torch.where(aims.asked, short, 0.0)
        drift = torch.where(aims.asked, 0.0, beyond.abs())
        step = torch.where(aims.asked, (phi - self.start[rows]).abs(), 0.0).sum(1)
        turning = (short > 0) | (aims.asked & aims.flip & (beyond > 0.5 * slack))
        if config.hold:
            turning |= drift > _HELD_TOLERANCE
        return short.sum(1), drift.amax(1) if config.hold else step, turning

    def next(self, rows: Tensor) -> Tensor:
        """phi(s') to try for these rows [b, A]."""
        t, y, wanted, slope = self.t[rows], self.y[rows], self.wanted[rows], self.slope[rows]
        low, high = self.low_t[rows], self.high_t[rows]
        # Illinois: an end that stays while the other moves counts half as much each time
        weight = 0.5 ** self.repeats[rows]
        short = (wanted - self.low_y[rows]) * torch.where(self.was_low[rows], 1.0, weight)
        over = (self.high_y[rows] - wanted) * torch.where(self.was_low[rows], weight, 1.0)
        between = low + (short / (short + over)).clamp(0.02, 0.98) * (high - low)
        step = (wanted - y) / slope
        size = step.abs().clamp(_LEAST_STEP, _GREATEST_STEP)
        # the first try goes all the way: nothing is known yet that speaks for less
        size = torch.where((self.tries[rows] == 0)[:, None], step.abs(), size)
        beyond = t + torch.where(step < 0, -size, size)
        bracketed = (high - low).abs() > 2.0 / _GRID  # False where an end is not known
        to = torch.where(bracketed, between, beyond)
        to = torch.where(self.turning[rows], to, t)
        to = torch.where(self.several[rows][:, None], t + self._jointly(rows), to)
        to = torch.minimum(torch.maximum(to, self.least[rows]), self.most[rows])
        phi = torch.round((self.start[rows] + self.side[rows] * to) * _GRID) / _GRID
        return torch.where(to == 0, self.start[rows], phi)

    def _jointly(self, rows: Tensor) -> Tensor:
        """Step of all attributes together, for rows that turn several [b, A]: damped least squares."""
        turned = self.turnable[rows].double()
        matrix = self.jacobian[rows] * turned[:, None, :] * turned[:, :, None]
        gap = (self.wanted[rows] - self.y[rows]) * turned
        damping = _DAMPING * torch.eye(turned.shape[1], dtype=torch.float64, device=gap.device)
        step = torch.linalg.solve(matrix.mT @ matrix + damping, matrix.mT @ gap[:, :, None])[:, :, 0]
        first = (self.tries[rows] == 0)[:, None]
        return torch.where(first, gap, step.clamp(-_GREATEST_STEP, _GREATEST_STEP))

    def saw(self, rows: Tensor, phi: Tensor, read: Tensor, finite: Tensor) -> Tensor:
        """Take readings [b, A] in; which of these rows are now better than before [b] bool."""
        wanted, t = self.wanted[rows], self.side[rows] * (phi - self.start[rows])
        y = self.side[rows] * (_half_logit(read) - self.start_read[rows])
        # numbers that are not finite count as twice too far: the next try is half way back
        y = torch.where(finite[:, None], y, torch.maximum(2.0 * wanted - self.low_y[rows], wanted + 0.1))
        dt = t - self.t[rows]
        rise = ((y - self.y[rows]) / dt).clamp(_FLATTEST, _STEEPEST)
        self.slope[rows] = torch.where((dt.abs() > 2.0 / _GRID) & finite[:, None], rise, self.slope[rows])
        # Broyden: the matrix that explains what was just read, and else changes least
        size = dt.square().sum(1, keepdim=True)
        told = ((y - self.y[rows]) - (self.jacobian[rows] @ dt[:, :, None])[:, :, 0]) / size.clamp_min(1e-12)
        useful = finite & (size[:, 0] > (2.0 / _GRID) ** 2)
        change = told[:, :, None] * dt[:, None, :]
        self.jacobian[rows] += torch.where(useful[:, None, None], change, 0.0)
        self.t[rows], self.y[rows] = t, y
        self._bracket(rows, t, y, y < wanted, finite)
        excess, cost, turning = self._judged(rows, phi, read)
        excess = torch.where(finite, excess, torch.inf)
        turning |= ~finite[:, None] & self.aims.asked[rows]
        better = excess < self.best_excess[rows]
        better |= (excess == self.best_excess[rows]) & (cost < self.best_cost[rows])
        better &= finite
        self.best_phi[rows[better]] = phi[better]
        self.best_excess[rows[better]], self.best_cost[rows[better]] = excess[better], cost[better]
        self.tries[rows] += 1
        self.turning[rows] = turning
        self.any_finite[rows] |= finite
        self._finish(rows, t, y < wanted, finite)
        return better

    def _bracket(self, rows: Tensor, t: Tensor, y: Tensor, low: Tensor, finite: Tensor) -> None:
        again = (low == self.was_low[rows]) & (self.tries[rows] > 0)[:, None] & finite[:, None]
        self.repeats[rows] = torch.where(again, self.repeats[rows] + 1.0, 0.0)
        self.was_low[rows] = low
        # an end on the wrong side of the new try was read when other attributes stood elsewhere
        low_t = torch.where(~low & (self.low_t[rows] >= t), torch.nan, self.low_t[rows])
        high_t = torch.where(low & (self.high_t[rows] <= t), torch.nan, self.high_t[rows])
        self.low_t[rows], self.low_y[rows] = torch.where(low, t, low_t), torch.where(low, y, self.low_y[rows])
        self.high_t[rows] = torch.where(low, high_t, t)
        self.high_y[rows] = torch.where(low, self.high_y[rows], y)

    def _finish(self, rows: Tensor, t: Tensor, low: Tensor, finite: Tensor) -> None:
        """Rows that are done, or cannot get further."""
        reached, turning = self.best_excess[rows] <= 0, self.turning[rows]
        missing = turning & self.aims.asked[rows] & finite[:, None]
        near = 1.0 / _GRID
        stuck = missing & torch.where(low, t >= self.most[rows] - near, t <= self.least[rows] + near)
        self.at_end[rows] = stuck.any(1)
        self.extra[rows] += reached
        allowed = _FINER + (_HELD_TRIES if self.config.hold else 0)
        settled = reached & (~turning.any(1) | (self.extra[rows] > allowed))
        hopeless = stuck.any(1) & (missing == stuck).all(1)
        self.done[rows] = settled | hopeless


def _phi(s: Tensor) -> Tensor:
    return features(s.double())


def _half_logit(scores: Tensor) -> Tensor:
    return 0.5 * torch.logit(scores.double().clamp(_LEAST_SCORE, 1.0 - _LEAST_SCORE))
