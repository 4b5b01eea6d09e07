"""Helpers for asyncio tasks: group them, shield them from cancellation, delay them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

logger = logging.getLogger("ray.serve")

SOON_S = 0.25

R = TypeVar("R")


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks concurrently; cancel the others when one fails, and raise its error unwrapped."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def shield(ending: Coroutine[Any, Any, R]) -> R:
    """Carry something to its end, whatever cancels the caller meanwhile."""
    task = asyncio.ensure_future(ending)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    return task.result()


@asynccontextmanager
async def run_after(
    pause_s: float = SOON_S,
) -> AsyncIterator[Callable[[Callable[[], Awaitable[None]]], None]]:
    """Give what does something after a pause, unless the block has ended by then.

    What has begun is waited for at the end of the block.
    """
    over = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def wait(call: Callable[[], Awaitable[None]]) -> None:
        try:
            await asyncio.wait_for(over.wait(), pause_s)
        except TimeoutError:
            await call()

    try:
        yield lambda call: tasks.append(asyncio.ensure_future(wait(call)))
    finally:
        over.set()
        for failure in await asyncio.gather(*tasks, return_exceptions=True):
            if failure is not None:
                # It was a word on the way; how the block ends is not for it to change.
                logger.warning("something that was due meanwhile failed: %r", failure)
