"""How many rows a network is given at a time: by resolution, and less where the device runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from sdflow_core.records.errors import ContractError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MICRO_BATCH = 16
_PIXELS = MICRO_BATCH * 256 * 256
# what PyTorch and the allocators under it say where they do not raise an error of their own
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")


def micro_batch_for(resolution: int) -> int:
    """Rows a network call at a resolution: 16 up to 256 px, as many pixels above.

    Args:
        resolution: Side of the picture in pixels.

    Returns:
        At least 1, at most 16.

    Example:
        >>> [micro_batch_for(side) for side in (64, 256, 512, 1024, 2048)]
        [16, 16, 4, 1, 1]
    """
    return max(1, min(MICRO_BATCH, _PIXELS // (resolution * resolution)))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the machine, does not suffice."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


class Halving:
    """Applies a function to a batch, in halves once it did not fit.

    A batch that fits is one call, as if this were not there. What did not fit is remembered: later batches
    come in the smaller size at once. Said in the log the first time; results are the same up to rounding.

    Args:
        name: Of what is applied, for the log.

    Example:
        >>> import torch
        >>> seen = []
        >>> def double(rows):
        ...     seen.append(len(rows))
        ...     if len(rows) > 2:
        ...         raise MemoryError
        ...     return rows * 2
        >>> Halving("generator").apply(double, torch.ones(4, 1)).tolist(), seen
        ([[2.0], [2.0], [2.0], [2.0]], [4, 2, 2])
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.most: int | None = None
        self._said = False

    def apply(self, call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Apply `call`, row by row the same, to a batch.

        Args:
            call: [b, ...] -> [b, ...], for any b.
            rows: [B, ...], B >= 1.

        Returns:
            [B, ...], same order.

        Raises:
            ContractError: Not even a single row fits.
        """
        import torch

        parts: list[Tensor] = []
        start = 0
        while start < len(rows):
            part = rows[start : start + (self.most or len(rows))]
            try:
                parts.append(call(part))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                self._smaller(len(part), error)
            else:
                start += len(part)
                continue
            # outside of the handler: the error holds the frames, and with them what they had allocated
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _smaller(self, size: int, error: BaseException) -> None:
        if size == 1:
            raise ContractError(
                f"{self.name}: not even one picture fits into memory",
                found=str(error).splitlines()[0] if str(error) else type(error).__name__,
                todo="free memory, use a device with more, or a smaller resolution or half precision",
            ) from error
        self.most = size // 2
        if not self._said:
            log.warning("%s: %d rows do not fit into memory; going on with %d", self.name, size, self.most)
            self._said = True
