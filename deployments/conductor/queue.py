"""Taking executions from the queue, starting and cancelling them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from dbos import DBOS, SetWorkflowID

from deployments.conductor.attempts import attempt_id
from deployments.conductor.context import ExecutionContext
from deployments.conductor.metrics import ExecutionMetrics
from deployments.conductor.records import ExecutionRecords
from deployments.conductor.workflow import ExecutionWorkflow
from workflows.execution import FINISHED, Execution


@dataclass(eq=False)
class ExecutionQueue:
    """The queue in the execution store, as the Conductor that leads serves it."""

    records: ExecutionRecords
    context: ExecutionContext
    workflow: ExecutionWorkflow
    metrics: ExecutionMetrics

    async def reconcile(self, claimed: Sequence[Execution]) -> None:
        """Make executions that a predecessor claimed agree with their workflows in DBOS.

        Those whose workflow never began are started. Those whose workflow has ended without the
        execution's record saying so are ended. DBOS recovers all others by itself.
        """
        for execution in claimed:
            execution_id = execution.execution_id
            status = await DBOS.get_workflow_status_async(attempt_id(execution))
            if status is None:
                await self._start(execution)
            elif status.status in {"SUCCESS", "ERROR", "CANCELLED"}:
                self.context.capacity.remove(execution_id)
                # It may have been recovered, and have ended, a moment ago.
                if (
                    await asyncio.to_thread(self.records.store.read, execution_id)
                ).status in FINISHED:
                    continue
                if execution.cancel_requested:
                    await self.context.end_cancelled(execution_id)
                else:
                    await self.context.end_failed(
                        execution_id, "the server was stopped before the outcome was recorded"
                    )

    async def claim_next(self) -> bool:
        """Claim and start the execution that has waited longest; return whether there was one."""
        if self.context.capacity.is_exhausted:
            # Saves a write lock. Executions of workflows that are not served fail a little later.
            return False
        # A failed execution can be retried before its files are removed, here and in its container.
        # It is claimed after that, or the removal would take what its next attempt writes.
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
        packaged = execution.results if execution.is_packaged else None
        with SetWorkflowID(attempt_id(execution)):
            await DBOS.start_workflow_async(
                self.workflow.execute, execution.execution_id, execution.retries, packaged
            )

    async def cancel_requested(self) -> None:
        """Cancel the executions for which that was requested."""
        for execution in await asyncio.to_thread(self.records.store.cancel_requests):
            execution_id = execution.execution_id
            active = self.context.active.get(execution_id)
            if active is not None and not active.is_cancelling:
                active.is_cancelling = True
                # Recorded first, so that no successor resumes it; then stopped here at once.
                await DBOS.cancel_workflow_async(attempt_id(execution))
                active.task.cancel()
            elif active is None and execution_id not in self.context.capacity:
                # It may have finished since the request was read.
                await self.context.end_cancelled(execution_id)
            # Otherwise it is about to begin, and checks for a request first.
