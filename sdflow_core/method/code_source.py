"""Where codes and scores come from while an editor is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor


class CodeSource(Protocol):
    """N codes [L, D] with scores [A], read by row number or in order."""

    @property
    def rows(self) -> int:
        """N."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(L, D)."""
        ...

    @property
    def attributes(self) -> int:
        """A."""
        ...

    @property
    def blocks(self) -> Sequence[int]:
        """Numbers of consecutive rows that are cheap to read together; their sum is N."""
        ...

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Row numbers int64 [B] -> codes [B, L, D] float32, scores [B, A] float32."""
        ...

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows in order, at most `size` at a time."""
        ...


class TensorSource:
    """Codes that lie in memory.

    Args:
        codes: [N, L, D].
        scores: [N, A].
    """

    def __init__(self, codes: Tensor, scores: Tensor) -> None:
        self.codes, self.scores = codes.float(), scores.float()

    @property
    def rows(self) -> int:
        """N."""
        return len(self.codes)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, D)."""
        return self.codes.shape[1], self.codes.shape[2]

    @property
    def attributes(self) -> int:
        """A."""
        return self.scores.shape[1]

    @property
    def blocks(self) -> Sequence[int]:
        """One: all rows lie in memory."""
        return (len(self.codes),)

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """See `CodeSource.read`."""
        return self.codes[index], self.scores[index]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `CodeSource.batches`."""
        yield from zip(self.codes.split(size), self.scores.split(size), strict=True)
