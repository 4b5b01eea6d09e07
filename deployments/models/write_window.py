"""The bounded window of unwritten steps between a model and the Packager.

Streams between Serve deployments have no back-pressure. This bounds how far a model runs ahead of
the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from deployments.models.buffer_pool import Floats
from deployments.runtime.failures import retry_transient
from deployments.runtime.retries import RetryPolicy

Write = Callable[[int, Floats], Awaitable[Any]]

PACKAGER_CALL = RetryPolicy(attempts=5, initial_delay_s=0.5)


class WriteWindow:
    """Writes several steps at once, up to a bound.

    Parameters
    ----------
    write : callable
        Writes one step, ``(time_index, fields)``; may be called twice for the same step.
    size : int
        Steps that may be unwritten.
    release : callable, optional
        Called with the fields of every step that is written: their memory may be reused.
    written : int
        Steps that were written before.
    """

    def __init__(
        self,
        write: Write,
        size: int,
        retries: RetryPolicy = PACKAGER_CALL,
        release: Callable[[Floats], None] = lambda _: None,
        written: int = 0,
    ) -> None:
        self._write = write
        self._release = release
        self._retries = retries
        self._slots = asyncio.Semaphore(size)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._deferred: asyncio.Task[None] | None = None
        self.written = written

    async def put(self, time_index: int, fields: Floats) -> None:
        """Start to write a step; waits while the window is full.

        Raises the failure of an earlier write.
        """
        await self._slots.acquire()
        if self._failure is not None:
            self._slots.release()
            raise self._failure
        task = asyncio.get_running_loop().create_task(self._write_step(time_index, fields))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def has_deferred(self) -> bool:
        """Whether a deferred write is pending."""
        return self._deferred is not None and not self._deferred.done()

    async def defer(self, write: Callable[[], Awaitable[Any]]) -> None:
        """Call `write` after all steps so far are written; takes no room in the window.

        It is not called if a step fails. It handles its own errors.
        """
        earlier = set(self._tasks)

        async def write_after_steps() -> None:
            if earlier:
                await asyncio.wait(earlier)
            if self._failure is None:
                await write()

        self._deferred = asyncio.get_running_loop().create_task(write_after_steps())

    async def _write_step(self, time_index: int, fields: Floats) -> None:
        try:
            write = partial(self._write, time_index, fields)
            await retry_transient(write, f"writing step {time_index}", self._retries)
            self.written += 1
            self._release(fields)
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._slots.release()

    async def close(self) -> None:
        """Wait until everything is written; raises the failure of a write."""
        while pending := self._pending():
            await asyncio.wait(pending)
        if self._failure is not None:
            raise self._failure

    async def abandon(self) -> None:
        """Cancel all writes that are pending."""
        pending = self._pending()
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    def _pending(self) -> set[asyncio.Task[None]]:
        return {task for task in (*self._tasks, self._deferred) if task and not task.done()}
