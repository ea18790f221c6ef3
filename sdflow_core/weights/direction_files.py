"""Files of directions: `.npy` and `.pt` arrays, and GANSpace's components (`comp`, `mean`, `std`).

One array is one direction, [D], [1, D] for all rows or [L, D] row by row; [A, L, D] or several named arrays
are several. Whether a direction was made for this generator cannot be told: InterFaceGAN's boundaries for
StyleGAN1 look like any other [1, 512].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdflow_core.method.direction_editor import DirectionEditor
from sdflow_core.method.editing import LinearEditor
from sdflow_core.method.semantic_encoder import SemanticEncoder
from sdflow_core.records.errors import ContractError
from sdflow_core.weights.describing import Described

__all__ = ["load", "recognise"]

_COMPONENTS = {"comp", "mean", "std"}
_LEAST, _MOST_ROWS = 8, 64  # numbers in a style; rows of a generator. Other arrays are no directions.
_NOTE = (
    "for which generator a direction was made cannot be told from it: InterFaceGAN's boundaries for "
    "StyleGAN1 look the same, and do nothing sensible on StyleGAN2"
)
_LICENCE = "the file says nothing of its licence"


def recognise(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Described | None:
    """Tell directions from names and shapes; works on `meta` tensors.

    Returns:
        What they are, or None for something else. `layers` is 1 where one direction serves all rows;
        `attributes` is how many directions there are.
    """
    del plain
    if set(tensors) == _COMPONENTS:
        count, dim = _component_sizes(tensors)
        if not count:
            return None
        return Described(
            kind="directions",
            family="ganspace",
            layers=1,
            style_dim=dim,
            attributes=count,
            parameters=sum(value.numel() for value in tensors.values()),
            notes=("strength is a place on the component, in standard deviations, not a distance",),
            licence=_LICENCE,
        )
    shapes = [_stacked_shape(value) for value in tensors.values()]
    if not shapes or None in shapes or any("." in name for name in tensors) or "latent_avg" in tensors:
        return None
    sizes = [shape for shape in shapes if shape is not None]
    if len({shape[2] for shape in sizes}) != 1:
        return None
    return Described(
        kind="directions",
        family="directions",
        layers=max(shape[1] for shape in sizes),
        style_dim=sizes[0][2],
        attributes=sum(shape[0] for shape in sizes),
        parameters=sum(value.numel() for value in tensors.values()),
        notes=(_NOTE,),
        licence=_LICENCE,
    )


def load(
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    *,
    rows: int,
    encoder_digest: str,
    names: Sequence[str] | None = None,
    components: Sequence[int] | None = None,
    row_range: tuple[int, int] | None = None,
    semantic_encoder: SemanticEncoder | None = None,
    where: str = "the file",
) -> DirectionEditor | LinearEditor:
    """Make an editor of a file of directions.

    Args:
        tensors: The arrays by name.
        plain: What lies beside them; nothing is read from it.
        rows: L of the generator.
        encoder_digest: Encoder of the codes to be edited.
        names: Of the directions, in order; None numbers them (`direction_0`, `component_3`), but takes the
            attributes of `semantic_encoder` where there is one.
        components: Which of GANSpace's components; None takes the first eight.
        row_range: First row that is moved, and the one after the last; None moves all.
        semantic_encoder: Image -> scores of just these attributes, in this order. With one, strength means
            what it means for every other editor, and the length of a direction is a change of the score
            from 0 to 1. Without, it is a distance along the direction, or for GANSpace a place on it.
        where: The file, for messages.

    Returns:
        The editor.

    Raises:
        ContractError: No directions; other rows than the generator's; values that are not finite; a spread of
            0; names, components or rows that are not there.
    """
    if recognise(tensors, plain) is None:
        raise ContractError(
            "no directions",
            expected="arrays [D], [1, D], [L, D] or [A, L, D], or comp, mean and std",
            found="; ".join(f"{name} {list(value.shape)}" for name, value in list(tensors.items())[:8]),
            where=where,
        )
    first, last = row_range or (0, rows)
    if not 0 <= first < last <= rows:
        raise ContractError("rows to move", expected=f"some of 0 to {rows}", found=row_range, where=where)
    mean = places = None
    if set(tensors) == _COMPONENTS:
        directions, mean, places, own = _components(tensors, components, where)
    else:
        if components is not None:
            raise ContractError("components", expected="comp, mean and std", found=list(tensors), where=where)
        directions, own = _directions(tensors, rows, where)
    for value in (directions, mean, places):
        if value is not None and not bool(torch.isfinite(value).all()):
            raise ContractError("directions", expected="finite numbers", found="NaN or infinity", where=where)
    moved = torch.zeros(len(directions), rows, directions.shape[2])
    moved[:, first:last] = directions.expand(-1, rows, -1)[:, first:last]
    if semantic_encoder is not None:
        if names is not None and tuple(names) != semantic_encoder.attributes:
            raise ContractError(
                "names of directions", expected=semantic_encoder.attributes, found=tuple(names), where=where
            )
        return LinearEditor(moved, semantic_encoder, encoder_digest)
    return DirectionEditor(
        moved, own if names is None else tuple(names), encoder_digest, mean=mean, places=places
    )


def _stacked_shape(value: Tensor) -> tuple[int, int, int] | None:
    """(A, rows, D) of one array; None where it cannot be directions."""
    shape = tuple(value.shape)
    if not value.is_floating_point() or not 1 <= len(shape) <= 3 or shape[-1] < _LEAST:
        return None
    count, rows, dim = (1,) * (3 - len(shape)) + shape
    return (count, rows, dim) if 1 <= rows <= _MOST_ROWS and count >= 1 else None


def _directions(tensors: Mapping[str, Tensor], rows: int, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Directions [A, 1 or L, D], and names for them: those of the arrays where there are several."""
    stacks: list[Tensor] = []
    names: list[str] = []
    for name, value in tensors.items():
        count, own_rows, dim = _stacked_shape(value) or (0, 0, 0)
        if own_rows not in (1, rows):
            raise ContractError(
                "directions for another generator",
                expected=f"1 or {rows} rows",
                found=f"{name} {list(value.shape)}",
                where=where,
            )
        stack = value.detach().float().reshape(count, own_rows, dim)
        stacks.append(stack.expand(-1, rows, -1))
        names += [name if count == 1 else f"{name}_{i}" for i in range(count)]
    found = torch.cat(stacks)
    numbered = tuple(f"direction_{i}" for i in range(len(found)))
    return found, tuple(names) if len(tensors) > 1 else numbered


def _component_sizes(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """(components, D); (0, 0) where the three arrays do not fit together."""
    comp, mean, std = (tensors[name] for name in ("comp", "mean", "std"))
    if comp.ndim < 2 or not all(value.is_floating_point() for value in (comp, mean, std)):
        return 0, 0
    count, dim = comp.shape[0], comp.shape[-1]
    fits = comp.numel() == count * dim and mean.numel() == dim and std.numel() == count
    return (count, dim) if fits and dim >= _LEAST else (0, 0)


def _components(
    tensors: Mapping[str, Tensor], chosen: Sequence[int] | None, where: str
) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Directions [A, 1, D], mean [D], places [A, D] and names of some components."""
    count, dim = _component_sizes(tensors)
    index = list(range(min(count, 8))) if chosen is None else list(chosen)
    if not index or len(set(index)) != len(index) or not all(0 <= i < count for i in index):
        raise ContractError(
            "components", expected=f"some of 0 to {count - 1}, each once", found=index, where=where
        )
    comp = tensors["comp"].detach().float().reshape(count, dim)[index]
    std = tensors["std"].detach().float().reshape(count, 1)[index]
    if not bool((std > 0).all()):
        raise ContractError(
            "components", expected="a spread above 0", found=std.flatten().tolist(), where=where
        )
    mean = tensors["mean"].detach().float().reshape(dim)
    return (comp * std)[:, None], mean, comp / std, tuple(f"component_{i}" for i in index)
