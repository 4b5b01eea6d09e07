"""Long polling: one reader of the store wakes any number of waiting requests.

A replica reads the state of all awaited executions in one query, and only while requests wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from starlette.requests import Request

from deployments.store.executions import ExecutionStore
from serve_app.files.serving import wait_disconnected
from workflows.execution import FINISHED, Execution

INTERVAL_S = 0.02
MAX_PENDING = 2000
"""Requests of one replica that wait as long as they ask for."""
MAX_WOKEN = 3
"""Requests that are woken per reading, 150 a second. An answer and the request that follows it cost
2.5 ms: a thousand clients that watch one forecast would keep the replica from everything else."""
CROWDED_WAIT_S = 1.0
"""Seconds that further ones wait; without a pause, their clients would keep the replica busy."""


class ExecutionState(NamedTuple):
    """State of an execution that is cheap to read."""

    revision: int | None
    """None if the execution has been removed."""
    position: int | None
    """Number of executions ahead of it in the queue; None unless it is queued."""


def read_states(
    store: ExecutionStore, executions: Sequence[Execution]
) -> dict[str, ExecutionState]:
    """Return the current states of executions, by id."""
    revisions = store.revisions([execution.execution_id for execution in executions])
    return {
        execution.execution_id: ExecutionState(
            revisions.get(execution.execution_id),
            # One query each, but for queued executions only: at most the length of the queue.
            store.position(execution),
        )
        for execution in executions
    }


@dataclass(eq=False)
class _PendingRequest:
    execution: Execution
    position: int | None
    changed: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def update(self, state: ExecutionState) -> bool:
        """Wake the request if a state differs from what it knows; return whether it was woken."""
        moved = self.position is not None and state.position != self.position
        if (state.revision == self.execution.revision and not moved) or self.changed.done():
            return False
        self.changed.set_result(None)
        return True


class ChangeWatcher:
    """Wakes requests when the executions that they wait for change.

    Parameters
    ----------
    read : callable
        Returns the states of executions by id, see `read_states`. An error is raised in every
        waiting request.
    max_woken : int
        Requests that are woken per reading, those that have waited longest first.
    max_pending : int
        Number of waiting requests from which further ones wait only `crowded_wait_s`.
    """

    def __init__(
        self,
        read: Callable[[Sequence[Execution]], Awaitable[Mapping[str, ExecutionState]]],
        interval_s: float = INTERVAL_S,
        max_woken: int = MAX_WOKEN,
        max_pending: int = MAX_PENDING,
        crowded_wait_s: float = CROWDED_WAIT_S,
    ) -> None:
        self._read = read
        self._interval_s = interval_s
        self._max_woken = max_woken
        self._max_pending = max_pending
        self._crowded_wait_s = crowded_wait_s
        self._pending: dict[_PendingRequest, None] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """Number of waiting requests."""
        return len(self._pending)

    async def wait(self, execution: Execution, position: int | None, timeout_s: float) -> None:
        """Wait until an execution differs from what the caller knows, at most `timeout_s`.

        Parameters
        ----------
        execution : Execution
            The execution as the caller knows it.
        position : int or None
            Its position in the queue as the caller knows it; None ignores changes of the position.
        """
        if self.pending >= self._max_pending:
            timeout_s = min(timeout_s, self._crowded_wait_s)
        request = _PendingRequest(execution, position)
        self._pending[request] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="long poll")
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await request.changed
        finally:
            self._pending.pop(request, None)

    async def wait_finished(
        self, execution: Execution, reread: Callable[[], Awaitable[Execution]], timeout_s: float
    ) -> Execution:
        """Return an execution once it has finished, or as it is after `timeout_s`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while execution.status not in FINISHED:
            remaining = deadline - asyncio.get_running_loop().time()
            if remaining <= 0:
                break
            await self.wait(execution, None, remaining)
            execution = await reread()
        return execution

    async def wait_removed(self, execution: Execution, timeout_s: float) -> bool:
        """Wait until an execution has been removed; return False after `timeout_s`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (remaining := deadline - asyncio.get_running_loop().time()) > 0:
            revision = (await self._read([execution]))[execution.execution_id].revision
            if revision is None:
                return True
            await self.wait(execution.model_copy(update={"revision": revision}), None, remaining)
        return False

    async def close(self) -> None:
        """Stop reading; requests that still wait run into their timeouts."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while self._pending:
            await asyncio.sleep(self._interval_s)
            requests = list(self._pending)
            if not requests:
                break
            distinct = {request.execution.execution_id: request.execution for request in requests}
            try:
                states = await self._read(list(distinct.values()))
            except Exception as error:  # raised in each request, which answers by the error table
                for request in requests:
                    if not request.changed.done():
                        request.changed.set_exception(error)
                continue
            n_woken = 0
            for request in requests:
                n_woken += request.update(states[request.execution.execution_id])
                if n_woken == self._max_woken:
                    break


async def while_connected(request: Request, waiting: Awaitable[None]) -> None:
    """Await `waiting`, but cancel it if the client disconnects."""
    task = asyncio.ensure_future(waiting)
    disconnect = asyncio.create_task(wait_disconnected(request.receive))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        disconnect.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)
    if not task.cancelled():
        task.result()
