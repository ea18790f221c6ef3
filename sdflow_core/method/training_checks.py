"""What can be wrong with the material of a training, said before any time is spent on it."""

from __future__ import annotations

import torch
from torch import Tensor

from sdflow_core.records.errors import ContractError


def check_codes(codes: Tensor) -> None:
    """Codes [N, L, D]: finite, at least two, and not all the same.

    Raises:
        ContractError: Naming the first row that is not finite, or what else is wrong.
    """
    if codes.ndim != 3 or len(codes) < 2 or not codes.is_floating_point():
        raise ContractError(
            "codes to train on", expected="floats [N >= 2, L, D]", found=f"{codes.dtype} {list(codes.shape)}"
        )
    require_finite_rows("codes to train on", codes)
    if bool((codes == codes[:1]).all()):
        raise no_spread(len(codes))


def no_spread(rows: int) -> ContractError:
    """Codes that are all the same, in words."""
    return ContractError(
        "codes to train on",
        expected="codes that differ",
        found=f"{rows} rows with the same code",
        todo="check the encoder: it gave the same code for every face",
    )


def require_finite_rows(what: str, values: Tensor, first: int = 0) -> None:
    """Raise ContractError naming the first row of [N, ...] that is not finite, counted from `first`."""
    good = torch.isfinite(values).flatten(1).all(1)
    if not bool(good.all()):
        bad = (~good).nonzero()[:, 0]
        raise ContractError(
            what,
            expected="finite numbers",
            found=f"NaN or infinity in {len(bad)} of {len(values)} rows",
            where=f"row {first + int(bad[0])}",
        )


def check_scores(scores: Tensor, rows: int, names: tuple[str, ...]) -> None:
    """Scores [N, A] of so many rows: finite and in [0, 1].

    Raises:
        ContractError: Naming the first bad row and its attribute.
    """
    if tuple(scores.shape) != (rows, len(names)):
        raise ContractError(
            "scores to train on", expected=f"[{rows}, {len(names)}] for {names}", found=list(scores.shape)
        )
    check_score_values(scores, names)


def check_score_values(
    scores: Tensor, names: tuple[str, ...], first: int = 0, what: str = "scores to train on"
) -> None:
    """Part of `check_scores` for one batch of rows, the first of which has this number.

    Raises:
        ContractError: Naming the first bad row and its attribute.
    """
    outside = ~((scores >= 0) & (scores <= 1))  # NaN is outside, too
    if bool(outside.any()):
        row, column = (int(value) for value in outside.nonzero()[0])
        raise ContractError(
            what,
            expected="values in [0, 1]",
            found=float(scores[row, column]),
            where=f"row {first + row}, attribute {names[column]}",
        )


def check_classes(present: Tensor, rows: int, names: tuple[str, ...]) -> None:
    """Each attribute is there (score above .5) in some rows and absent in others.

    Args:
        present: How many rows have each attribute [A].
        rows: N.
        names: A names.

    Raises:
        ContractError: Naming the attributes that cannot be learned and how many rows lie on each side.
    """
    alone = [
        f"{name}: {int(count)} with, {rows - int(count)} without"
        for name, count in zip(names, present, strict=True)
        if count in (0, rows)
    ]
    if alone:
        raise ContractError(
            "labels of one class only: nothing says what this attribute changes",
            expected="rows with and rows without each attribute (score above and below 0.5)",
            found="; ".join(alone),
            todo="leave the attribute out, or add rows that differ in it (more prior samples)",
        )


def check_batch(rows: int, batch: int | None, held_out: int = 0) -> None:
    """Raise ContractError where there are fewer rows than a batch.

    Args:
        rows: That can be trained on.
        batch: Rows a step; None: what there is, at least one.
        held_out: Rows that early stopping keeps beside them.
    """
    least = batch or 1
    if rows < least:
        beside = f", beside {held_out} that early stopping holds out" if held_out else ""
        raise ContractError(
            "fewer rows than a batch",
            expected=f"at least {least} rows{beside}",
            found=rows,
            where="batch",
            todo="add rows (more prior samples), or lower `batch` of the training",
        )


def check_images(images: Tensor | None, rows: int) -> None:
    """Pictures, where there are any, are uint8 [N, 3, H, W].

    Raises:
        ContractError: Of another type, shape or number.
    """
    if images is not None and (images.ndim != 4 or len(images) != rows or images.dtype != torch.uint8):
        raise ContractError(
            "images to train on",
            expected=f"uint8 [{rows}, 3, H, W]",
            found=f"{images.dtype} {list(images.shape)}",
        )
