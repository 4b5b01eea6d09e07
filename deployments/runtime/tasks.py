"""Run asyncio tasks as a group, to their end, or after a delay."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

logger = logging.getLogger("ray.serve")

R = TypeVar("R")
T = TypeVar("T")


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks concurrently; cancel the others when one fails, and raise its error unwrapped."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def for_each(
    call: Callable[[T], Coroutine[Any, Any, None]], items: Iterable[T], at_once: int
) -> None:
    """Call a function for every item, `at_once` concurrently; cancel the others when one fails."""
    remaining = iter(items)

    async def work() -> None:
        for item in remaining:
            await call(item)

    async with task_group() as group:
        for _ in range(at_once):
            group.create_task(work())


async def shield(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine to its end and return its result; ignores cancellation of the caller."""
    task = asyncio.ensure_future(coroutine)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    return task.result()


@asynccontextmanager
async def run_after(
    delay_s: float = 0.25,
) -> AsyncIterator[Callable[[Callable[[], Awaitable[None]]], None]]:
    """Yield a function that schedules a call after a delay, unless the block ends before that.

    The end of the block waits for calls that have started. Their errors are logged, not raised.
    """
    ended = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def call_after_delay(call: Callable[[], Awaitable[None]]) -> None:
        try:
            await asyncio.wait_for(ended.wait(), delay_s)
        except TimeoutError:
            await call()

    try:
        yield lambda call: tasks.append(asyncio.ensure_future(call_after_delay(call)))
    finally:
        ended.set()
        for failure in await asyncio.gather(*tasks, return_exceptions=True):
            if failure is not None:
                logger.warning("a delayed call failed: %r", failure)
