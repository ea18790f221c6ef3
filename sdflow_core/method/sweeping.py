"""An editor at several strengths on people it never saw, and what observers see of every edit.

Every row is asked to flip one attribute, as `metrics` of this field define it; no gate, no blending, and an
edit that fails stays where it is in the arrays. What the arrays say is read by `matched`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdflow_core.method.editor import Editor
from sdflow_core.records.errors import ContractError

__all__ = ["BEYOND", "Observer", "Sweep", "find_strengths", "flip_targets", "join_sweeps", "sweep"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

# tried in turn until nearly all edits succeed
_TRIED = (0.25, 0.5, 0.75, 1.0, 1.4, 2.0, 3.0, 4.5)
_ENOUGH = 0.97
BEYOND = (1.5, 3.0)  # a judge may ask for more than the labeller does


@dataclass(frozen=True)
class Observer:
    """Something that looks at pictures.

    Attributes:
        call: Pictures [n, 3, H, W] in [-1, 1] and their row numbers [n] -> [n, F] float32.
        only: Attributes whose edits it looks at; empty: all.
    """

    call: Callable[[Tensor, NDArray[np.int64]], Floats]
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A attributes, S strengths, N rows; what each observer says has its own width F.

    Attributes:
        attributes: Edited, A names.
        strengths: float [A, S], ascending.
        requested: s' of the edited attribute [A, S, N].
        wanted: bool [A, N], the class that each row shall have afterwards.
        before: Observer -> [N, F] of the unedited renderings.
        after: Observer -> [A, S, N, F]; NaN where it did not look.
        nfe: Evaluations of the field an edit took, the preparation included.
    """

    attributes: tuple[str, ...]
    strengths: Floats
    requested: Floats
    wanted: Bools
    before: dict[str, Floats]
    after: dict[str, Floats]
    nfe: int


def flip_targets(s: Tensor, column: int, wanted: Tensor) -> Tensor:
    """s [N, A] with one attribute set to 1 where it is wanted [N], to 0 where not."""
    targets = s.clone()
    targets[:, column] = wanted.to(s)
    return targets


def sweep(
    editor: Editor,
    codes: Tensor,
    attributes: Sequence[str],
    strengths: NDArray[np.floating],
    render: Callable[[Tensor], Tensor],
    observers: Mapping[str, Observer],
    tracked: Sequence[str],
    *,
    chooser: str = "labeller",
    micro_batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Edit every row for every attribute at every strength, and let all observers look.

    Args:
        editor: Any.
        codes: w+ [N, L, D].
        attributes: To be flipped, each on its own.
        strengths: [A, S], ascending along S.
        render: w+ [n, L, D] -> pictures [n, 3, H, W].
        observers: By name; `chooser` gives [n, K] scores of `tracked`.
        tracked: K names.
        chooser: The observer whose opinion of the unedited rendering is flipped.
        micro_batch: Rows an edit.
        progress: Called with (pictures looked at, pictures in all).

    Raises:
        ContractError: No rows, strengths of another shape or not ascending, unknown attributes.
    """
    count, steps = len(codes), strengths.shape[-1]
    unknown = [name for name in attributes if name not in editor.attributes or name not in tracked]
    if unknown or not attributes:
        raise ContractError(
            "attributes to sweep",
            expected=f"some of {', '.join(editor.attributes)}",
            found=", ".join(unknown),
        )
    if not count or strengths.shape != (len(attributes), steps) or bool((np.diff(strengths) <= 0).any()):
        raise ContractError(
            "rows and strengths to sweep",
            expected=f"at least one row, ascending strengths [{len(attributes)}, S]",
            found=f"{count} rows, {strengths.tolist()}",
        )
    rows = np.arange(count)
    pictures = render(codes)
    s = torch.cat([editor.encode_semantics(part) for part in pictures.split(micro_batch)])
    before = {name: observer.call(pictures, rows) for name, observer in observers.items()}
    after = {
        name: np.full((len(attributes), steps, *seen.shape), np.nan, np.float32)
        for name, seen in before.items()
    }
    requested = np.empty((len(attributes), steps, count), np.float32)
    wanted = np.empty((len(attributes), count), np.bool_)
    nfe = 0
    for a, attribute in enumerate(attributes):
        column = editor.attributes.index(attribute)
        wanted[a] = before[chooser][:, tracked.index(attribute)] < 0.5
        targets = flip_targets(s, column, torch.from_numpy(wanted[a]))
        parts = list(torch.arange(count).split(micro_batch))
        prepared = [editor.prepare(codes[index], s[index]) for index in parts]
        for k, strength in enumerate(strengths[a]):
            requested[a, k] = (s + float(strength) * (targets - s))[:, column].numpy()
            edits = [
                editor.apply(ready, targets[index], float(strength))
                for ready, index in zip(prepared, parts, strict=True)
            ]
            nfe = max(nfe, max(edit.nfe for edit in edits))
            shown = render(torch.cat([edit.w_plus for edit in edits]))
            for name, observer in observers.items():
                if not observer.only or attribute in observer.only:
                    after[name][a, k] = observer.call(shown, rows)
            if progress is not None:
                progress((a * steps + k + 1) * count, len(attributes) * steps * count)
    return Sweep(tuple(attributes), strengths.astype(np.float32), requested, wanted, before, after, nfe)


def join_sweeps(parts: Sequence[Sweep]) -> Sweep:
    """Sweeps of the same strengths over different rows, one after the other.

    Raises:
        ContractError: None, or other attributes or strengths.
    """
    if not parts or any(
        part.attributes != parts[0].attributes or not np.array_equal(part.strengths, parts[0].strengths)
        for part in parts
    ):
        raise ContractError("sweeps to join", expected="at least one, of the same attributes and strengths")
    return Sweep(
        parts[0].attributes,
        parts[0].strengths,
        np.concatenate([part.requested for part in parts], axis=2),
        np.concatenate([part.wanted for part in parts], axis=1),
        {name: np.concatenate([part.before[name] for part in parts]) for name in parts[0].before},
        {name: np.concatenate([part.after[name] for part in parts], axis=2) for name in parts[0].after},
        max(part.nfe for part in parts),
    )


def find_strengths(
    editor: Editor,
    codes: Tensor,
    attributes: Sequence[str],
    render: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
    tracked: Sequence[str],
    levels: Sequence[float] = (0.6, 0.85, 0.95),
    *,
    micro_batch: int = 16,
) -> NDArray[np.float32]:
    """Strengths of an editor at which a sweep passes from few successes to nearly all, and beyond.

    To be asked of codes that the editor was trained on, never of those that it is judged by.

    Args:
        editor: Any.
        codes: w+ [M, L, D]; both classes of every attribute should be among them.
        attributes: A names.
        render: See `sweep`.
        score: Pictures -> scores [m, K] of `tracked`.
        tracked: K names.
        levels: Shares of successes to find a strength for, by interpolation between those tried.
        micro_batch: Rows an edit.

    Returns:
        [A, len(levels) + 3] ascending: one for each level, the first tried where 97 % succeed (or the
        largest tried), and 1.5 and 3 times that.
    """
    before = score(render(codes))
    out: list[list[float]] = []
    with torch.no_grad():
        s = torch.cat([editor.encode_semantics(part) for part in render(codes).split(micro_batch)])
        for attribute in attributes:
            column, read = editor.attributes.index(attribute), tracked.index(attribute)
            wanted = before[:, read] < 0.5
            targets = flip_targets(s, column, wanted)
            tried, reached = [0.0], [0.0]
            for strength in _TRIED:
                edits = [
                    editor.edit(w, None, now, goal, strength).w_plus
                    for w, now, goal in zip(
                        codes.split(micro_batch),
                        s.split(micro_batch),
                        targets.split(micro_batch),
                        strict=True,
                    )
                ]
                hit = (score(render(torch.cat(edits)))[:, read] > 0.5) == wanted
                tried.append(strength)
                reached.append(max(float(hit.float().mean()), reached[-1]))
                if reached[-1] >= _ENOUGH:
                    break
            last = tried[-1]
            found = [float(np.interp(level, reached, tried)) for level in levels]
            chosen = [*found, last, *(factor * last for factor in BEYOND)]
            for i in range(1, len(chosen)):  # levels that were not told apart
                chosen[i] = max(chosen[i], chosen[i - 1] * 1.02)
            out.append(chosen)
    return np.array(out, np.float32)


def edit_cost(editor: Editor, codes: Tensor, s: Tensor, column: int, batch: int, turns: int = 7) -> float:
    """Milliseconds of one edit, preparation included, at a batch size; the median of several calls."""
    w, now = codes[:batch], s[:batch]
    targets = flip_targets(now, column, now[:, column] < 0.5)
    taken: list[float] = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        editor.edit(w, None, now, targets)
        taken.append((time.perf_counter() - started) * 1000 / len(w))
    return float(np.median(taken[1:]))
