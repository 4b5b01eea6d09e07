"""What the Conductor removes by itself: results whose time is over, and what crashes have left.

Whoever is killed in the middle leaves it to the successor. An execution is first marked as
expired, so that nobody is told of its results any more; then its files and DBOS's records go; then
its row is marked as one of which nothing else is left. Each of these may happen twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from dbos import DBOS
from ray.serve.handle import DeploymentHandle

from deployments.conductor.attempts import attempts_over, execution_of, remove_attempts
from deployments.conductor.context import Lives
from deployments.conductor.options import RetentionOptions
from deployments.results.protocols import StoredExecution
from deployments.runtime.log_context import execution_bound
from deployments.store.conductor_view import ConductorStore
from workflows.errors import ExecutionNotFound
from workflows.execution import FINISHED, Execution, Status

logger = logging.getLogger("ray.serve")

BATCH = 50
"""Executions dealt with before others get their turn."""
PAGE = 500
"""Executions asked for in one question."""
PAUSE_S = 0.2
"""Between two batches or pages."""
AGAIN_S = 60.0
"""When what could not be removed is tried again."""
FORGET_IDS_AFTER = timedelta(days=7)


class Retention:
    """Removes what nobody needs any more, a little at a time.

    Parameters
    ----------
    store : ConductedStore
    packager : DeploymentHandle
        Owns the folders of results and working files.
    lives : Lives
        For the fencing token, and for what runs here.
    options : HousekeepingOptions
    """

    def __init__(
        self,
        store: ConductorStore,
        packager: DeploymentHandle[Any],
        lives: Lives,
        options: RetentionOptions,
    ) -> None:
        self._store = store
        self._packager = packager
        self._lives = lives
        self._options = options
        self._put_off: dict[str, float] = {}
        """Executions that could not be removed, and when to try again."""

    async def run(self) -> None:
        """Look after everything until cancelled."""
        sweep_at = time.monotonic()
        while True:
            await self._attempt(self.expire)
            if time.monotonic() >= sweep_at:
                await self._attempt(self.sweep)
                sweep_at = time.monotonic() + self._options.sweep_s
            await asyncio.sleep(self._options.look_s)

    async def _attempt(self, what: Callable[[], Awaitable[None]]) -> None:
        try:
            await what()
        except Exception:
            logger.exception("housekeeping was interrupted, tried again later")

    async def expire(self) -> None:
        """Let results expire whose time is over, and forget those that expired long ago."""
        await _in_batches(self._expire_some)
        await _in_batches(self._forget_some)

    async def _forget_some(self) -> int:
        """Forget a batch of what expired long ago; says how many."""
        if self._options.keep_record_s is None:
            return 0
        limit = _ago(self._options.keep_record_s)
        return await self._lives.write(self._store.forget, limit, BATCH)

    async def _expire_some(self) -> int:
        """Let a batch expire; says how many were to."""
        due: Sequence[str] = ()
        if self._options.keep_s is not None:
            limit = _ago(self._options.keep_s)
            due = await asyncio.to_thread(self._store.due, limit, BATCH)
            for execution_id in due:
                try:
                    await self._lives.write(self._store.expire, execution_id, limit)
                except ExecutionNotFound:
                    continue  # purged meanwhile
        now = time.monotonic()
        self._put_off = {each: at for each, at in self._put_off.items() if at > now}
        # Also what a predecessor has begun.
        expired = await asyncio.to_thread(self._store.expired, BATCH, self._put_off)
        for execution in expired:
            with execution_bound(execution.execution_id, execution.workflow):
                await self._remove_expired(execution)
        return max(len(due), len(expired))

    async def _remove_expired(self, execution: Execution) -> None:
        try:
            await self._packager.purge.remote(execution.workflow, execution.execution_id)
            self._lives.withdrawals.begin(execution)
            await remove_attempts(execution)
            await self._lives.write(self._store.mark_removed, execution.execution_id)
        except Exception:
            logger.exception("%s has expired but is not removed yet", execution.execution_id)
            # From now on: while an outage lasts a batch takes longer than that.
            self._put_off[execution.execution_id] = time.monotonic() + AGAIN_S

    async def sweep(self) -> None:
        """Remove what is left of executions that ended a while ago, or were removed.

        Folders are listed before the store is asked: a row is there before its folder, so one
        that has none was removed, or is another store's. What this store has never heard of stays:
        with a wrong `store_url` all results would be such.
        """
        begun = datetime.now(UTC)
        await self._sweep_folders()
        await self._sweep_attempts()
        # Each of these was looked for in between.
        await self._lives.write(self._store.forget_ids, begun - FORGET_IDS_AFTER)

    async def _sweep_folders(self) -> None:
        after, strangers = "", 0
        while True:
            page: list[StoredExecution] = await self._packager.stored_executions.remote(after, PAGE)
            if not page:
                break
            after = page[-1].execution_id
            ids = [holding.execution_id for holding in page]
            limit = _ago(self._options.grace_s)
            ended = await asyncio.to_thread(self._store.ended, ids, limit)
            for holding in page:
                execution_id = holding.execution_id
                if execution_id in ended and (
                    holding.is_working or ended[execution_id] != Status.COMPLETED
                ):
                    with execution_bound(execution_id, next(iter(holding.workflows), None)):
                        await self._remove_rest(holding)
            strangers += len(set(ids) - await asyncio.to_thread(self._store.known, ids))
            await asyncio.sleep(PAUSE_S)
        if strangers:
            logger.warning(
                "folders of %d executions are left alone: this store has never heard of them",
                strangers,
            )

    async def _remove_rest(self, holding: StoredExecution) -> None:
        """Remove what an execution has left, unless it goes on."""
        execution_id = holding.execution_id
        left_alone = self._lives.removing[execution_id] = asyncio.Event()
        try:
            # Read once more: tried again from now on, its life begins only behind this.
            execution = await self._read(execution_id)
            if execution is not None and self._may_be_tried_again(execution):
                return
            if execution is None or (self._is_over(execution) and execution.results is None):
                for workflow in holding.workflows:
                    await self._packager.purge.remote(workflow, execution_id)
                if execution is not None:
                    self._lives.withdrawals.begin(execution)
                await self._lives.write(self._store.mark_left_nothing, execution_id)
            elif not (self._is_over(execution) and holding.is_working):
                return
            await self._packager.clean.remote(execution_id)
            logger.info("removed what was left of %s", execution_id)
        except Exception:
            logger.exception("what is left of %s is not removed yet", execution_id)
        finally:
            del self._lives.removing[execution_id]
            left_alone.set()

    async def _read(self, execution_id: str) -> Execution | None:
        try:
            return await asyncio.to_thread(self._store.read, execution_id)
        except ExecutionNotFound:
            return None

    def _may_be_tried_again(self, execution: Execution) -> bool:
        return (
            execution.status == Status.FAILED
            and execution.has_whole_members
            and execution.results is None
            and execution.ended_at is not None
            and execution.ended_at >= _ago(self._options.keep_failed_s)
        )

    def _is_over(self, execution: Execution) -> bool:
        return execution.status in FINISHED and execution.execution_id not in self._lives.running

    async def _sweep_attempts(self) -> None:
        """Remove DBOS's records of executions that ended a while ago, or were removed."""
        kept = 0
        while attempts := await attempts_over(kept, PAGE):
            ids = {execution_of(attempt) for attempt in attempts}
            ended = await asyncio.to_thread(self._store.ended, ids, _ago(self._options.grace_s))
            known = await asyncio.to_thread(self._store.known, ids)
            # DBOS's records are this store's alone: here nobody else's can be.
            over = [
                attempt
                for attempt in attempts
                if (execution_of(attempt) in ended or execution_of(attempt) not in known)
                and execution_of(attempt) not in self._lives.running
            ]
            for start in range(0, len(over), BATCH):
                await DBOS.delete_workflows_async(over[start : start + BATCH])
                await asyncio.sleep(PAUSE_S)
            kept += len(attempts) - len(over)


async def _in_batches(some: Callable[[], Awaitable[int]]) -> None:
    """Do something batch by batch until one is not full."""
    while True:
        if await some() < BATCH:
            return
        await asyncio.sleep(PAUSE_S)


def _ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)
