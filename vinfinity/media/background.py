"""Items consumed in a background thread while the next ones are produced."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def consume_in_background(items: Iterable[T], consume: Callable[[T], object], *, most_pending: int) -> None:
    """Call `consume` with each item, in order, in one background thread; this thread produces the next items.

    most_pending: how many items (>= 1) may be queued or in progress at a time. An exception on either side ends both
    within one item: queued items are dropped, and the thread has ended when this function raises.
    """
    pending: deque[Future[object]] = deque()
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        for item in items:
            while pending and (pending[0].done() or len(pending) >= most_pending):
                pending.popleft().result()
            pending.append(pool.submit(consume, item))
        for future in pending:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
