"""One pass over the codes: what the closed-form parts of a flow are made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdflow_core.method.code_source import CodeSource
from sdflow_core.method.condition import features
from sdflow_core.method.training_checks import check_score_values, require_finite_rows
from sdflow_core.records.errors import ContractError

SAMPLE_ROWS = 8192


@dataclass(frozen=True)
class ConditionSums:
    """Sums over all rows for the regression of codes on x = [1, phi(s)], float64."""

    xx: Tensor  # [1 + A, 1 + A]
    xw: Tensor  # [1 + A, L*D]


@dataclass(frozen=True)
class CodeSurvey:
    """What is known of N codes after one pass."""

    count: int
    mean: Tensor  # [L, D] float32
    std: Tensor  # [L, D] float32, unbiased
    sample_codes: Tensor  # [M, L, D], every k-th row
    sample_scores: Tensor  # [M, A]
    sums: ConditionSums
    stride: int = 1  # k
    present: Tensor = field(default_factory=lambda: torch.zeros(0))  # [A] rows with a score above .5

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: what a checkpoint knows its codes by."""
        found = hashlib.sha256(str(self.count).encode())
        parts = [self.mean, self.std, self.sample_codes, self.sample_scores, self.sums.xx, self.sums.xw]
        for part in parts:
            found.update(repr((tuple(part.shape), part.dtype)).encode())
            found.update(part.contiguous().numpy().tobytes())
        return found.hexdigest()


def survey(source: CodeSource, batch: int = 4096, names: tuple[str, ...] = ()) -> CodeSurvey:
    """Mean, spread, a sample and the sums of the regression on phi(s).

    Memory holds one batch, the sample (every k-th row, at most 8,192) and the sums. Sums are taken around the
    first batch's mean, so that codes far from zero lose no digits.

    Args:
        source: Codes and scores.
        batch: Rows in memory at once.
        names: Of the attributes, for errors.

    Raises:
        ContractError: No rows, a code that is not finite, a score outside [0, 1]: the row is named.
    """
    rows, dim = source.shape
    if source.rows < 1:
        raise ContractError("codes to survey", expected="at least one row", found=0)
    every = -(-source.rows // SAMPLE_ROWS)
    wide = source.attributes + 1
    xx, xw = torch.zeros(wide, wide, dtype=torch.float64), torch.zeros(wide, rows * dim, dtype=torch.float64)
    squares, shift = torch.zeros(rows * dim, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    codes_kept: list[Tensor] = []
    scores_kept: list[Tensor] = []
    seen, present = 0, torch.zeros(source.attributes, dtype=torch.int64)
    for codes, scores in source.batches(batch):
        flat = codes.flatten(1).double()
        require_finite_rows("codes to train on", flat, seen)
        check_score_values(scores, names or tuple(map(str, range(source.attributes))), seen)
        present += (scores > 0.5).sum(0)
        if seen == 0:
            shift = flat.mean(0)
        flat -= shift
        x = torch.cat([torch.ones(len(flat), 1, dtype=torch.float64), features(scores.double())], dim=1)
        xx += x.T @ x
        xw += x.T @ flat
        squares += flat.square().sum(0)
        first = -seen % every
        codes_kept.append(codes[first::every].clone())  # a view would keep the whole batch
        scores_kept.append(scores[first::every].clone())
        seen += len(flat)
    moved = xw[0] / seen
    variance = (squares - seen * moved.square()).clamp_min(0) / max(seen - 1, 1)
    shape = (rows, dim)
    return CodeSurvey(
        seen,
        (shift + moved).reshape(shape).float(),
        variance.sqrt().reshape(shape).float(),
        torch.cat(codes_kept),
        torch.cat(scores_kept),
        # back to sums of the codes themselves
        ConditionSums(xx, xw + xx[:, :1] * shift),
        every,
        present,
    )
