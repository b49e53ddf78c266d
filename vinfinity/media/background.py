"""Work that is done in a thread, one step behind what it is done with."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def work_behind(items: Iterable[T], work: Callable[[T], object], *, waiting: int) -> None:
    """Calls `work` with all items in their order, in one thread, while the next items are made in this one.

    At most `waiting` items (>= 1) wait or are worked on. What either side raises ends both, within one item: the others
    that wait are dropped, and the thread is gone when this function raises.
    """
    under_way: deque[Future[object]] = deque()
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        for item in items:
            while under_way and (under_way[0].done() or len(under_way) >= waiting):
                under_way.popleft().result()
            under_way.append(pool.submit(work, item))
        for future in under_way:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
