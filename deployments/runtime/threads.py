"""Run calls in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from typing import TypeVar

R = TypeVar("R")
T = TypeVar("T")


def map_ahead(
    pool: Executor, call: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Call a function for every item, `ahead` concurrently; yield its results in order."""
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(call, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # The caller may clean up after an error: no call may still be running then.
        wait([future for future in pending if not future.cancel()])
