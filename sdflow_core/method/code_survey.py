"""One pass over the codes: what the closed-form parts of a flow are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdflow_core.method.code_source import CodeSource
from sdflow_core.method.condition import features
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


def survey(source: CodeSource, batch: int = 4096) -> CodeSurvey:
    """Mean, spread, a sample and the sums of the regression on phi(s).

    Memory holds one batch, the sample (every k-th row, at most 8,192) and the sums. Sums are taken around the
    first batch's mean, so that codes far from zero lose no digits.

    Raises:
        ContractError: No rows, or a value that is not finite (its row is named).
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
    seen = 0
    for codes, scores in source.batches(batch):
        flat = codes.flatten(1).double()
        if not bool(torch.isfinite(flat).all() & torch.isfinite(scores).all()):
            bad = ~(torch.isfinite(flat).all(1) & torch.isfinite(scores).all(1))
            raise ContractError(
                "codes and scores to train on",
                expected="finite numbers",
                found="NaN or infinity",
                where=f"row {seen + int(bad.nonzero()[0, 0])}",
            )
        if seen == 0:
            shift = flat.mean(0)
        flat -= shift
        x = torch.cat([torch.ones(len(flat), 1, dtype=torch.float64), features(scores.double())], dim=1)
        xx += x.T @ x
        xw += x.T @ flat
        squares += flat.square().sum(0)
        first = -seen % every
        codes_kept.append(codes[first::every])
        scores_kept.append(scores[first::every])
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
    )
