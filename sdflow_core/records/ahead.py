"""Many small requests side by side, their answers in order: a store far away answers late, not slowly."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from .objects import LocalStore, Store

__all__ = ["AT_ONCE", "ahead"]

AT_ONCE = 16  # requests under way; more were no faster against one server
A = TypeVar("A")
B = TypeVar("B")


def ahead(store: Store, ask: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """`ask` of every item, in their order; of a store that is no folder of this machine several at a time.

    At most `2 * AT_ONCE` answers are held. What `ask` raises is raised when its item's turn has come, and
    nothing is asked after it but what was under way.

    Args:
        store: What is asked.
        ask: Asks it; may run in another thread, so it must not take locks that the caller holds.
        items: Taken one by one, as room is made.

    Yields:
        One answer an item.
    """
    if isinstance(store, LocalStore):
        yield from map(ask, items)
        return
    left = iter(items)
    first = list(islice(left, 2))
    if len(first) < 2:  # not worth a thread
        yield from map(ask, first)
        return
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ahead")
    asked: deque[Future[B]] = deque(pool.submit(ask, item) for item in first)
    try:
        asked.extend(pool.submit(ask, item) for item in islice(left, 2 * AT_ONCE - 2))
        while asked:
            answer = asked.popleft().result()
            asked.extend(pool.submit(ask, item) for item in islice(left, 1))
            yield answer
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
