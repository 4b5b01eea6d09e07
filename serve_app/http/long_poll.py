"""Waiting for an execution to change, for any number of clients with one reader.

A replica reads the revisions of all awaited executions in one query, and only while somebody
waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from starlette.requests import Request

from workflows.execution import FINISHED, Execution

INTERVAL_S = 0.02


class Seen(NamedTuple):
    """What can be told of an execution without reading it whole."""

    revision: int | None
    """None if the execution is gone."""
    position: int | None
    """Executions ahead of it in the queue; None if it does not wait."""


class RevisionStore(Protocol):
    """The part of the execution store that is watched."""

    def revisions(self, execution_ids: Sequence[str]) -> dict[str, int]:
        """Read the revisions of many executions at once; missing ones are left out."""

    def position(self, execution: Execution) -> int | None:
        """Count the queued executions ahead of this one; None if it does not wait."""


@dataclass(eq=False)
class _Waiter:
    execution: Execution
    position: int | None
    changed: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def look(self, now: Seen) -> None:
        moved = self.position is not None and now.position != self.position
        if (now.revision != self.execution.revision or moved) and not self.changed.done():
            self.changed.set_result(None)


class ChangeWatcher:
    """Wakes those who wait for an execution to change.

    Parameters
    ----------
    look : callable
        Reads what there is to see of executions, see `look_at`; a failure reaches all who wait.
    interval_s : float
        Time between two looks.
    """

    def __init__(
        self,
        look: Callable[[Sequence[Execution]], Awaitable[Mapping[str, Seen]]],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._look = look
        self._interval_s = interval_s
        self._waiters: set[_Waiter] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of those who wait."""
        return len(self._waiters)

    async def wait(self, execution: Execution, position: int | None, timeout_s: float) -> None:
        """Wait until an execution is no longer as it was seen, at most `timeout_s`.

        Parameters
        ----------
        execution : Execution
            As the caller knows it.
        position : int or None
            The position that the caller knows; None if it does not matter.
        """
        waiter = _Waiter(execution, position)
        self._waiters.add(waiter)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="long poll")
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await waiter.changed
        finally:
            self._waiters.discard(waiter)

    async def wait_finished(
        self, execution: Execution, read: Callable[[], Awaitable[Execution]], timeout_s: float
    ) -> Execution:
        """Wait until an execution has finished, at most `timeout_s`; give it as it is then."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while execution.status not in FINISHED:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await self.wait(execution, None, left)
            execution = await read()
        return execution

    async def wait_gone(self, execution: Execution, timeout_s: float) -> bool:
        """Wait until an execution is forgotten, at most `timeout_s`; tell whether it is."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            revision = (await self._look([execution]))[execution.execution_id].revision
            if revision is None:
                return True
            await self.wait(execution.model_copy(update={"revision": revision}), None, left)
        return False

    async def close(self) -> None:
        """Stop watching; who still waits, waits until its time is over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while self._waiters:
            await asyncio.sleep(self._interval_s)
            waiters = list(self._waiters)
            if not waiters:
                break
            distinct = {waiter.execution.execution_id: waiter.execution for waiter in waiters}
            try:
                now = await self._look(list(distinct.values()))
            except Exception as error:  # each request answers for itself, by the error table
                for waiter in waiters:
                    if not waiter.changed.done():
                        waiter.changed.set_exception(error)
                continue
            for waiter in waiters:
                waiter.look(now[waiter.execution.execution_id])


def look_at(store: RevisionStore, executions: Sequence[Execution]) -> dict[str, Seen]:
    """Read what there is to see of some executions, by id."""
    revisions = store.revisions([execution.execution_id for execution in executions])
    return {
        execution.execution_id: Seen(
            revisions.get(execution.execution_id),
            # Only queued executions have one, at most as many as the queue holds.
            store.position(execution),
        )
        for execution in executions
    }


async def while_connected(request: Request, waiting: Awaitable[None]) -> None:
    """Wait for something, but no longer than the client does."""
    wanted = asyncio.ensure_future(waiting)
    left = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({wanted, left}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
        if not wanted.done():
            wanted.cancel()
        await asyncio.gather(wanted, left, return_exceptions=True)
    if not wanted.cancelled():
        wanted.result()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
