"""The bounded window between a model and the Packager.

Streams between deployments have no back-pressure, so the window is ours: a model runs ahead of
the disk by at most `size` steps, then waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.runtime.failures import retry_transient

Write = Callable[[int, NDArray[np.float32]], Awaitable[Any]]

ATTEMPTS = 5
FIRST_PAUSE_S = 0.5


class WriteWindow:
    """Hands steps to a writer, several at once, in a bounded number.

    Parameters
    ----------
    write : callable
        Writes one step, ``(time_index, fields)``; may run twice for the same step.
    size : int
        Steps that may be under way.
    first_pause_s : float
        Pause before the second attempt; it doubles with each further one.
    give_back : callable, optional
        Told the fields of every step that is written: nobody needs them any more.
    written : int
        Steps that were on disk before.
    """

    def __init__(
        self,
        write: Write,
        size: int,
        first_pause_s: float = FIRST_PAUSE_S,
        give_back: Callable[[NDArray[np.float32]], None] = lambda _: None,
        written: int = 0,
    ) -> None:
        self._write = write
        self._give_back = give_back
        self._first_pause_s = first_pause_s
        self._room = asyncio.Semaphore(size)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._behind: asyncio.Task[None] | None = None
        self.written = written
        """Steps that are on disk."""

    async def put(self, time_index: int, fields: NDArray[np.float32]) -> None:
        """Hand over a step; waits while the window is full.

        Raises
        ------
        Exception
            What an earlier write failed with.
        """
        await self._room.acquire()
        if self._failure is not None:
            self._room.release()
            raise self._failure
        task = asyncio.get_running_loop().create_task(self._write_one(time_index, fields))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def is_busy_behind(self) -> bool:
        """Whether something that was put behind steps is not written yet."""
        return self._behind is not None and not self._behind.done()

    async def put_behind(self, write: Callable[[], Awaitable[Any]]) -> None:
        """Have something else written once all steps that were handed over are; takes no room.

        It is not written if one of them fails. What it fails with itself nobody is told.
        """
        before = set(self._tasks)

        async def write_behind() -> None:
            if before:
                await asyncio.wait(before)
            if self._failure is None:
                await write()

        self._behind = asyncio.get_running_loop().create_task(write_behind())

    async def _write_one(self, time_index: int, fields: NDArray[np.float32]) -> None:
        try:
            await retry_transient(
                lambda: self._write(time_index, fields),
                f"writing step {time_index}",
                attempts=ATTEMPTS,
                pause_s=self._first_pause_s,
            )
            self.written += 1
            self._give_back(fields)
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._room.release()

    async def close(self) -> None:
        """Wait until every step is written.

        Raises
        ------
        Exception
            What a write failed with.
        """
        while waiting := self._under_way():
            await asyncio.wait(waiting)
        if self._failure is not None:
            raise self._failure

    async def abandon(self) -> None:
        """Stop writing: what is under way is cancelled."""
        waiting = self._under_way()
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)

    def _under_way(self) -> set[asyncio.Task[None]]:
        behind = {self._behind} if self._behind is not None else set()
        return {task for task in self._tasks | behind if not task.done()}
