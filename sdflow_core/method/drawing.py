"""Codes prepared and drawn for many edits at once: calls of constant size, and rows that a solver stops for.

Every network call sees exactly `micro_batch` rows, the last one repeated: a row gives the same bytes whatever
its neighbours. A solver that stops for one row stops for its whole group: the rows of such a group are solved
once more, each alone in a call of the same size, and only that row is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdflow_core.method.condition import attributes_of, features
from sdflow_core.method.editor import Editor, Prepared
from sdflow_core.method.solvers import DivergedError

__all__ = ["Look", "draw_at", "padded", "prepare_all", "prepare_each"]

Look = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def prepare_all(editor: Editor, w_plus: Tensor, s: Tensor, micro_batch: int) -> Prepared:
    """`Editor.prepare` of codes [B, L, D] with s [B, A], in calls of constant size.

    Raises:
        DivergedError: The editor's solver does not get through with one of them.
    """
    prepared, why = prepare_each(editor, w_plus, s, micro_batch)
    for row, error in sorted(why.items()):
        raise DivergedError(error.what, found=error.found, where=f"row {row}", todo=error.todo)
    return prepared


def prepare_each(
    editor: Editor, w_plus: Tensor, s: Tensor, micro_batch: int
) -> tuple[Prepared, dict[int, DivergedError]]:
    """The same, where a row that the editor's solver does not get through with costs nothing but itself.

    Returns:
        The prepared rows, and why some of them (by number) are none: in their place stands the code itself.
    """
    groups: list[Prepared] = []
    why: dict[int, DivergedError] = {}
    for start, (count, group) in enumerate(padded((w_plus, s), micro_batch)):
        try:
            groups.append(_first(editor.prepare(*group), count))
        except DivergedError:
            for place in range(count):
                code, score = (part[place].expand(micro_batch, *part.shape[1:]) for part in group)
                try:
                    groups.append(_first(editor.prepare(code, score), 1))
                except DivergedError as error:
                    why[start * micro_batch + place] = error
                    groups.append(Prepared(code[:1], score[:1], code[:1], code[:1], 0))
    return _joined(groups), why


def _first(prepared: Prepared, count: int) -> Prepared:
    return prepared.take(torch.arange(count, device=prepared.s.device))


def _joined(groups: Sequence[Prepared]) -> Prepared:
    parts = [(group.w_plus, group.s, group.base, group.decoded) for group in groups]
    w_plus, s, base, decoded = (torch.cat(part) for part in zip(*parts, strict=True))
    return Prepared(w_plus, s, base, decoded, max(group.nfe for group in groups))


def draw_at(
    editor: Editor,
    prepared: Prepared,
    phi: Tensor,
    rows: Tensor,
    look: Look,
    micro_batch: int,
    why: dict[int, str] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Edit some prepared rows to phi(s'), and look at them.

    Args:
        editor: Any editor.
        prepared: Of all rows.
        phi: [b, A] wanted of these rows; entries equal to phi(s) are left alone exactly.
        rows: [b] which of the prepared rows.
        look: (codes, rows) -> (images [b, 3, H, W], scores [b, K]).
        micro_batch: Rows a call.
        why: Receives, by number of the prepared row, why the editor's solver did not get through with it.

    Returns:
        Codes, images and scores of these rows; the codes of a row that was not got through with are NaN.
    """
    s = prepared.s[rows]
    s_after = torch.where(phi == features(s.double()), s, attributes_of(phi).to(s))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for count, (some, wanted) in padded((rows, s_after), micro_batch):
            codes, lost = _applied(editor, prepared.take(some), wanted, count)
            broken = codes.isnan().flatten(1).any(1)
            # what is lost is looked at as it was before: nobody is shown what comes of it
            images, scores = look(torch.where(broken[:, None, None], prepared.w_plus[some], codes), some)
            if why is not None:
                why.update({int(some[place]): reason for place, reason in lost.items()})
            found.append((codes[:count], images[:count], scores[:count]))
    codes, images, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
    return codes, images, scores


def _applied(
    editor: Editor, prepared: Prepared, s_after: Tensor, count: int
) -> tuple[Tensor, dict[int, str]]:
    """A group at other attributes [micro_batch, L, D]; NaN, and why, for rows that the solver fails with."""
    try:
        return editor.apply(prepared, s_after).w_plus, {}
    except DivergedError:
        pass
    codes, why = torch.full_like(prepared.w_plus, torch.nan), dict[int, str]()
    for place in range(count):
        one = torch.full((len(s_after),), place, device=s_after.device)
        try:
            codes[place] = editor.apply(prepared.take(one), s_after[one]).w_plus[0]
        except DivergedError as error:
            why[place] = str(error)
    return codes, why


def padded(parts: tuple[Tensor, ...], size: int) -> list[tuple[int, tuple[Tensor, ...]]]:
    """Cut tensors into groups of exactly `size` rows, the last one repeated: [(rows that count, group)]."""
    out: list[tuple[int, tuple[Tensor, ...]]] = []
    total = len(parts[0])
    for start in range(0, total, size):
        index = torch.arange(start, start + size).clamp_max(total - 1).to(parts[0].device)
        out.append((min(size, total - start), tuple(part[index] for part in parts)))
    return out
