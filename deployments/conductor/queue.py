"""Takes executions from the queue, starts and cancels them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from dbos import DBOS, SetWorkflowID

from deployments.conductor.attempts import attempt_id
from deployments.conductor.context import ExecutionContext
from deployments.conductor.dbos_setup import APPLICATION_VERSION
from deployments.conductor.metrics import ExecutionMetrics
from deployments.conductor.records import ExecutionRecords
from deployments.conductor.workflow import ExecutionWorkflow
from workflows.execution import FINISHED, Execution

logger = logging.getLogger("ray.serve")


@dataclass(eq=False)
class ExecutionQueue:
    """The queue in the execution store, served by the leading Conductor."""

    records: ExecutionRecords
    context: ExecutionContext
    workflow: ExecutionWorkflow
    metrics: ExecutionMetrics

    async def reconcile(self, claimed: Sequence[Execution]) -> None:
        """Make executions that a predecessor claimed agree with their workflows in DBOS.

        Those whose workflow never began are started. Those whose workflow has ended without the
        execution's record saying so are ended. Those that another version of this server began
        are restarted. DBOS recovers all others by itself.
        """
        for execution in claimed:
            execution_id = execution.execution_id
            status = await DBOS.get_workflow_status_async(attempt_id(execution))
            if status is None:
                await self._start(execution)
            elif status.status in {"SUCCESS", "ERROR", "CANCELLED"}:
                self.context.capacity.remove(execution_id)
                # It may have been recovered and have ended in the meantime.
                current = await asyncio.to_thread(self.records.store.read, execution_id)
                if current.status in FINISHED:
                    continue
                if execution.cancel_requested:
                    await self.context.end_cancelled(execution_id)
                else:
                    await self.context.end_failed(
                        execution_id, "the server was stopped before the outcome was recorded"
                    )
            elif status.app_version != APPLICATION_VERSION:
                await self._take_over(execution, status.app_version)

    async def claim_next(self) -> bool:
        """Claim and start the execution that has waited longest; return whether there was one."""
        if self.context.capacity.is_exhausted:
            # Saves a write lock. Executions of workflows that are not served fail a bit later.
            return False
        # A failed execution can be retried before its files are removed, here and in its container.
        # It is only claimed afterwards, or the removal would take what its next attempt writes.
        ending = {
            *self.context.capacity.execution_ids,
            *self.context.active,
            *self.context.withdrawals.running,
        }
        full = self.context.capacity.full_workflows()
        execution = await self.records.write(self.records.store.claim_next, full, ending)
        if execution is None:
            return False
        self.metrics.record_claim(execution)
        await self._start(execution)
        return True

    async def _start(self, execution: Execution) -> None:
        self.context.capacity.take(execution)
        packaged = None
        if execution.is_packaged:
            find = self.records.store.manifest
            packaged = await asyncio.to_thread(find, execution.execution_id)
        with SetWorkflowID(attempt_id(execution)):
            await DBOS.start_workflow_async(
                self.workflow.execute, execution.execution_id, execution.retries, packaged
            )

    async def _take_over(self, execution: Execution, version: str | None) -> None:
        """Restart an execution that another version of this server began, or end it if asked to.

        DBOS does not recover its workflow. Seeds are in its plan and complete members in its
        files, so that another attempt computes only what is missing.
        """
        execution_id = execution.execution_id
        if execution.cancel_requested:
            self.context.capacity.remove(execution_id)
            await DBOS.cancel_workflow_async(attempt_id(execution))
            await self.context.end_cancelled(execution_id)
            return
        logger.warning(
            "%s was begun by version %s of this server and is restarted by version %s; its seeds "
            "and complete members are kept",
            execution_id,
            version,
            APPLICATION_VERSION,
        )
        # Counted first: a Conductor that dies here leaves an attempt that never began.
        restarted = await self.records.write(self.records.store.count_attempt, execution_id)
        await DBOS.cancel_workflow_async(attempt_id(execution))
        await self._start(restarted)

    async def cancel_requested(self) -> None:
        """Cancel the executions whose cancellation was requested."""
        for execution in await asyncio.to_thread(self.records.store.cancel_requests):
            execution_id = execution.execution_id
            active = self.context.active.get(execution_id)
            if active is not None and not active.is_cancelling:
                active.is_cancelling = True
                # Recorded first, so that no successor resumes it; then stopped here at once.
                await DBOS.cancel_workflow_async(attempt_id(execution))
                active.task.cancel()
            elif active is None and execution_id not in self.context.capacity:
                # It waits for a retry, or has finished since the request was read.
                self.context.start_end_cancelled(execution_id)
            # Otherwise it is about to begin, and checks for a request first.
