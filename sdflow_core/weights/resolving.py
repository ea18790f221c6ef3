"""What a pickle made, brought into its final form: late values in their places, and nothing that explodes."""

from __future__ import annotations

from typing import Any, cast

from sdflow_core.weights.bounds import Budget, refused
from sdflow_core.weights.pickles import Late, Name, Record

__all__ = ["resolved"]

_DEEPEST = 64
_MOST_VALUES = 4_000_000  # of a content written out as a tree; shared parts counted where they are used


def resolved(content: Any, budget: Budget) -> Any:
    """A content with every late value in its place, and nothing left that is no data.

    Raises:
        ContractError: It contains itself, is nested too deep, or grows beyond all measure when written out.
    """
    done: dict[int, tuple[Any, int, int]] = {}
    kept: list[Any] = []  # an address means its object only while the object lives

    def walk(value: Any, depth: int) -> tuple[Any, int, int]:
        """The value, how many values it is when written out, and how deep it is nested."""
        if value is None or isinstance(value, str | int | float):
            return value, 1, 0
        if (seen := done.get(id(value))) is not None:
            return seen
        kept.append(value)
        made: Any = value
        parts: list[tuple[Any, int, int]] = []
        if depth <= _DEEPEST and isinstance(value, dict):
            for key, inner in cast(dict[Any, Any], value).items():
                parts.append(walk(inner, depth + 1))
                made[key] = parts[-1][0]
        elif depth <= _DEEPEST and isinstance(value, list | tuple):
            parts = [walk(inner, depth + 1) for inner in cast("list[Any] | tuple[Any, ...]", value)]
            if isinstance(value, list):
                made[:] = [part[0] for part in parts]
            else:
                made = tuple(part[0] for part in parts)
        elif depth <= _DEEPEST and isinstance(value, Record):
            parts = [walk(value.state, depth + 1), walk(value.args, depth + 1)]
            value.state, value.args = parts[0][0], parts[1][0]
        elif isinstance(value, Late):
            made = value.value()
        elif isinstance(value, Name):
            made = str(value)
        elif isinstance(value, memoryview):
            budget.spend("raw", len(value))
            made = bytes(value)
        size = 1 + sum(part[1] for part in parts)
        height = 1 + max((part[2] for part in parts), default=0)
        if depth > _DEEPEST or height > _DEEPEST:
            raise refused(budget.where, "its values are nested too deep, or contain themselves")
        if size > _MOST_VALUES:
            raise refused(budget.where, "its values refer to each other and would fill any memory")
        done[id(value)] = made, size, height
        return made, size, height

    return walk(content, 0)[0]
