"""Who may use the device now: a global concurrency limit of the Prefect server, where one is configured.

A slot costs seconds to take, so it is held for a batch of shards, never for a picture. Without
`SDFLOW_GPU_LIMIT` the server is not asked at all.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from sdflow_core.records.errors import ContractError, TransientError
from tasks.runtime import settings

__all__ = ["device_slot"]

# The slot of a holder that was killed is free again 60 to 80 seconds later; a living one renews it.
_LEASE_SECONDS = 60

# Of this flow of control: a story inside one that holds the slot must not wait for its own parent.
_held: ContextVar[bool] = ContextVar("device slot held", default=False)


@contextmanager
def device_slot() -> Generator[None]:
    """Hold one slot of the limit that `SDFLOW_GPU_LIMIT` names; waits until one is free.

    Does nothing when the setting is empty, or when the caller holds the slot already.

    Raises:
        ContractError: The server has no such limit. Computing without it would be computing unlimited.
        TransientError: The server could not be asked.
    """
    name = settings().gpu_limit
    if not name or _held.get():
        yield
        return
    from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    with ExitStack() as stack:
        try:
            slot = concurrency(name, occupy=1, strict=True, lease_duration=_LEASE_SECONDS)
            stack.enter_context(slot)
        except ConcurrencySlotAcquisitionError as error:
            if "must be created" not in str(error):
                raise TransientError("the concurrency limit cannot be asked", found=error) from error
            raise ContractError(
                "the server has no such concurrency limit",
                expected=f"a global concurrency limit {name!r}",
                todo="`sdflow deploy` creates it; to run without a limit unset SDFLOW_GPU_LIMIT",
            ) from None
        mark = _held.set(True)
        try:
            yield
        finally:
            _held.reset(mark)
