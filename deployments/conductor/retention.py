"""Removes expired executions, and what crashes have left behind.

An execution is first marked as expired, so that clients are no longer offered its results. Then its
files and DBOS's records are removed, and finally its row is marked as the only thing left. Every
part can be repeated: if this process is killed in between, its successor continues.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from dbos import DBOS
from ray.serve.handle import DeploymentHandle

from deployments.conductor.attempts import ended_attempts, execution_id_of, remove_attempts
from deployments.conductor.context import ExecutionContext
from deployments.conductor.options import RetentionOptions
from deployments.conductor.records import ExecutionRecords
from deployments.conductor.steady_clock import SteadyClock
from deployments.results.messages import StoredExecution
from deployments.runtime.log_context import execution_bound
from deployments.store.executions import IDEMPOTENCY_WINDOW
from deployments.store.retention_view import RetentionView
from workflows.errors import ExecutionNotFound
from workflows.execution import FINISHED, Execution, Status

logger = logging.getLogger("ray.serve")

BATCH = 50
"""Executions removed before other work can run."""
PAGE = 500
"""Executions read in one query."""
PAUSE_S = 0.2
"""Pause between two batches or pages."""
RETRY_DELAY_S = 60.0
"""Delay before another attempt at an execution that could not be removed."""
KEEP_DELETED_IDS = timedelta(days=7)


@dataclass(eq=False)
class Retention:
    """Removes what is no longer needed, a little at a time."""

    records: ExecutionRecords
    context: ExecutionContext
    packager: DeploymentHandle[Any]
    options: RetentionOptions
    clock: SteadyClock
    _retry_at: dict[str, float] = field(default_factory=dict, init=False)
    """Executions that could not be removed, and when to try again."""

    @cached_property
    def view(self) -> RetentionView:
        """The store's view of retention."""
        return RetentionView(self.records.store)

    async def run(self) -> None:
        """Expire executions and sweep leftovers until cancelled."""
        sweep_at = time.monotonic()
        while True:
            await self._guarded(self.expire)
            if time.monotonic() >= sweep_at:
                await self._guarded(self.sweep)
                sweep_at = time.monotonic() + self.options.sweep_s
            await asyncio.sleep(self.options.look_s)

    async def _guarded(self, duty: Callable[[], Awaitable[None]]) -> None:
        try:
            await duty()
        except Exception:
            logger.exception("housekeeping was interrupted, retrying later")

    async def expire(self) -> None:
        """Expire executions that are old enough, and delete rows that expired long ago."""
        await _in_batches(self._expire_batch)
        await _in_batches(self._delete_batch)

    async def _delete_batch(self) -> int:
        keep_s = self.options.keep_record_s
        if keep_s is None or (removed_before := self.clock.ago(keep_s)) is None:
            return 0
        created_before = removed_before + timedelta(seconds=keep_s) - IDEMPOTENCY_WINDOW
        delete = self.view.delete_expired
        return await self.records.write(delete, removed_before, created_before, BATCH)

    async def _expire_batch(self) -> int:
        ids: Sequence[str] = ()
        limit = None if self.options.keep_s is None else self.clock.ago(self.options.keep_s)
        if limit is not None:
            ids = await asyncio.to_thread(self.view.expirable, limit, BATCH)
            for execution_id in ids:
                try:
                    await self.records.write(self.view.expire, execution_id, limit)
                except ExecutionNotFound:
                    continue  # purged meanwhile
        now = time.monotonic()
        self._retry_at = {each: at for each, at in self._retry_at.items() if at > now}
        # Includes what a predecessor has expired.
        expired = await asyncio.to_thread(self.view.expired, BATCH, self._retry_at)
        for execution in expired:
            with execution_bound(execution.execution_id, execution.workflow):
                await self._remove_expired(execution)
        return max(len(ids), len(expired))

    async def _remove_expired(self, execution: Execution) -> None:
        try:
            await self.packager.purge.remote(execution.workflow, execution.execution_id)
            self.context.withdrawals.start(execution)
            await remove_attempts(execution)
            await self.records.write(self.view.mark_only_row_left, execution.execution_id)
        except Exception:
            logger.exception("%s has expired but is not removed yet", execution.execution_id)
            # Counted from now: during an outage a batch takes longer than the delay.
            self._retry_at[execution.execution_id] = time.monotonic() + RETRY_DELAY_S

    async def sweep(self) -> None:
        """Remove what is left of executions that ended a while ago, or were deleted.

        Folders are listed before the store is queried: a row exists before its folder, so a folder
        without a row belongs to a deleted execution or to another store. Folders of executions
        that this store never had are kept: with a wrong `store_url` that would be all results.
        """
        limit = self.clock.ago(KEEP_DELETED_IDS.total_seconds())
        await self._sweep_folders()
        await self._sweep_attempts()
        if limit is not None:
            # This sweep has searched for the folders of all these ids.
            await self.records.write(self.view.delete_ids, limit)

    async def _sweep_folders(self) -> None:
        after, unknown = "", 0
        while True:
            page: list[StoredExecution] = await self.packager.stored_executions.remote(after, PAGE)
            if not page:
                break
            after = page[-1].execution_id
            ids = [stored.execution_id for stored in page]
            limit = _ago(self.options.grace_s)
            ended = await asyncio.to_thread(self.view.ended_before, ids, limit)
            for stored in page:
                execution_id = stored.execution_id
                if execution_id in ended and (
                    stored.is_working or ended[execution_id] != Status.COMPLETED
                ):
                    with execution_bound(execution_id, next(iter(stored.workflows), None)):
                        await self._remove_leftovers(stored)
            unknown += len(set(ids) - await asyncio.to_thread(self.view.known, ids))
            await asyncio.sleep(PAUSE_S)
        if unknown:
            logger.warning(
                "folders of %d executions are kept although this store never had them", unknown
            )

    async def _remove_leftovers(self, stored: StoredExecution) -> None:
        """Remove what an execution has left, unless it can still be resumed."""
        execution_id = stored.execution_id
        async with self.context.holding_back(execution_id):
            try:
                # Read again: from here on, a retry begins only after the removal.
                execution = await self._read(execution_id)
                if execution is not None and self._is_kept_for_retry(execution):
                    return
                if execution is None or (self._is_over(execution) and execution.results is None):
                    for workflow in stored.workflows:
                        await self.packager.purge.remote(workflow, execution_id)
                    if execution is not None:
                        self.context.withdrawals.start(execution)
                    await self.records.write(self.records.store.mark_files_removed, execution_id)
                elif not (self._is_over(execution) and stored.is_working):
                    return
                await self.packager.clean.remote(execution_id)
                logger.info("removed the leftovers of %s", execution_id)
            except Exception:
                logger.exception("the leftovers of %s are not removed yet", execution_id)

    async def _read(self, execution_id: str) -> Execution | None:
        try:
            return await asyncio.to_thread(self.records.store.read, execution_id)
        except ExecutionNotFound:
            return None

    def _is_kept_for_retry(self, execution: Execution) -> bool:
        limit = self.clock.ago(self.options.keep_failed_s)
        return (
            execution.status == Status.FAILED
            and execution.has_complete_members
            and execution.results is None
            and execution.ended_at is not None
            and (limit is None or execution.ended_at >= limit)
        )

    def _is_over(self, execution: Execution) -> bool:
        return execution.status in FINISHED and execution.execution_id not in self.context.active

    async def _sweep_attempts(self) -> None:
        """Remove DBOS's records of executions that ended a while ago, or were deleted."""
        kept = 0
        while attempts := await ended_attempts(kept, PAGE):
            ids = {execution_id_of(attempt) for attempt in attempts}
            ended = await asyncio.to_thread(self.view.ended_before, ids, _ago(self.options.grace_s))
            known = await asyncio.to_thread(self.view.known, ids)
            # Unlike folders, DBOS's records cannot belong to another store.
            over = [
                attempt
                for attempt in attempts
                if (execution_id_of(attempt) in ended or execution_id_of(attempt) not in known)
                and execution_id_of(attempt) not in self.context.active
            ]
            for start in range(0, len(over), BATCH):
                await DBOS.delete_workflows_async(over[start : start + BATCH])
                await asyncio.sleep(PAUSE_S)
            kept += len(attempts) - len(over)


async def _in_batches(batch: Callable[[], Awaitable[int]]) -> None:
    """Repeat a call until it processes less than a full batch."""
    while True:
        if await batch() < BATCH:
            return
        await asyncio.sleep(PAUSE_S)


def _ago(seconds: float) -> datetime:
    """Return a time by a clock that may be wrong: only for what is not worth keeping anyway."""
    return datetime.now(UTC) - timedelta(seconds=seconds)
