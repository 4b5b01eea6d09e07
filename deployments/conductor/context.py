"""The lifecycle of the executions that this process runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import sqlalchemy as sa
from dbos._error import DBOSMaxStepRetriesExceeded, DBOSWorkflowCancelledError
from ray.serve.handle import DeploymentHandle

from deployments.conductor.capacity import WorkflowCapacity
from deployments.conductor.cleanup import Withdrawals, best_effort_cleanup
from deployments.conductor.fencing import end_process
from deployments.conductor.member_scheduler import MemberScheduler
from deployments.conductor.metrics import ExecutionMetrics
from deployments.conductor.progress import ActiveExecution, completed_steps
from deployments.conductor.records import ExecutionRecords
from deployments.runtime.log_context import bind_execution, execution_bound
from deployments.runtime.retries import retry_on_db_outage
from deployments.runtime.tasks import shield
from workflows.base import Plan
from workflows.custom import CustomPlan, is_custom
from workflows.errors import DiskFull, StageFailed
from workflows.execution import FINISHED, Execution, Progress, Stage, Status
from workflows.manifest import Manifest

logger = logging.getLogger("ray.serve")

CANCEL_RETRY_S = 10.0


@dataclass(eq=False)
class ExecutionContext:
    """Begins and ends executions in this process, and knows which ones run."""

    records: ExecutionRecords
    packager: DeploymentHandle[Any]
    withdrawals: Withdrawals
    scheduler: MemberScheduler
    capacity: WorkflowCapacity
    metrics: ExecutionMetrics
    active: dict[str, ActiveExecution] = field(default_factory=dict, init=False)
    """The executions that run in this process, by id."""
    _held_back: dict[str, asyncio.Event] = field(default_factory=dict, init=False)
    _cancelling: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)
    """Executions that are cancelled while they do not run, by id."""
    _is_closed: bool = field(default=False, init=False)

    @asynccontextmanager
    async def running(self, execution_id: str, attempt: int) -> AsyncIterator[Plan | CustomPlan]:
        """Yield the plan of an execution, and record its end if the block fails or is cancelled.

        Raises
        ------
        StageFailed
            If a later attempt has taken over. DBOS recovers the attempt of a Conductor that died
            between its own record of a failure and DBOS's; it must no longer touch the execution.
        """
        if execution_id in self._held_back:
            await self._held_back[execution_id].wait()
        # A withdrawal would remove what this attempt uploads.
        await self.withdrawals.wait(execution_id)
        execution = await self.records.read(execution_id)
        bind_execution(execution_id, execution.workflow, execution.stage)
        if self._is_closed:
            raise asyncio.CancelledError
        if execution.retries != attempt:
            raise StageFailed(
                Stage.FINISH, f"attempt {attempt} was superseded by attempt {execution.retries}"
            )
        active = ActiveExecution(cast(asyncio.Task[Any], asyncio.current_task()))
        self.active[execution_id] = active
        self.scheduler.add_execution(execution_id)
        try:
            if execution.cancel_requested:
                raise asyncio.CancelledError
            if execution.status == Status.FAILED:
                # Recovered by DBOS although its outcome is recorded.
                raise StageFailed(execution.stage or Stage.FINISH, execution.error_message or "")
            plan = _plan_of(execution)
            if isinstance(plan, Plan):
                active.written = completed_steps(execution, plan)
                active.conditioned = [0] * len(plan.conditioning.seeds if plan.conditioning else ())
            yield plan
        except (asyncio.CancelledError, DBOSWorkflowCancelledError):
            # Both this process and DBOS cancel the task: the second cancel must not stop this.
            try:
                await shield(self.end_cancelled(execution_id))
            except sa.exc.SQLAlchemyError as error:
                # DBOS would record this error as the outcome, and no successor would resume.
                logger.warning("%s is left to a successor: %s", execution_id, error)
            raise
        except sa.exc.OperationalError as error:
            # Not a failure of the execution, which would not be resumed if it were recorded as one.
            end_process(f"the execution store is unavailable: {error.orig}")
        except Exception as error:
            _log_failure(execution_id, error)
            await shield(self.end_failed(execution_id, _reason(error), error))
            raise
        finally:
            del self.active[execution_id]
            self.metrics.forget(execution_id)
            self.scheduler.remove_execution(execution_id)
            self.capacity.remove(execution_id)

    def start_end_cancelled(self, execution_id: str) -> None:
        """Begin to end a cancelled execution that does not run, such as one that waits for a retry.

        Not awaited by the loop: removing a million files takes minutes.
        """
        if execution_id not in self._cancelling:
            task = asyncio.create_task(self._end_cancelled_or_retry(execution_id))
            self._cancelling[execution_id] = task

    async def _end_cancelled_or_retry(self, execution_id: str) -> None:
        try:
            await self.end_cancelled(execution_id)
        except Exception:
            logger.exception("%s not cancelled, retrying later", execution_id)
            await asyncio.sleep(CANCEL_RETRY_S)
        finally:
            del self._cancelling[execution_id]

    async def end_cancelled(self, execution_id: str) -> None:
        """Remove the files of an execution and record that it was cancelled.

        Does nothing if the execution has finished, or if no client asked for the cancel: then this
        process is stopping, and its successor resumes the execution.
        """
        execution = await asyncio.to_thread(self.records.store.read, execution_id)
        if not execution.cancel_requested or execution.status in FINISHED:
            return
        with execution_bound(execution_id, execution.workflow, execution.stage):
            is_removed = await self._purge(execution)
            # Before the record: after it no successor would repeat the withdrawal.
            await self.withdrawals.start_and_wait(execution)
            cancelled = await self.records.write(
                self.records.store.update,
                execution_id,
                status=Status.CANCELLED,
                keeps_files=not is_removed,
            )
            self.metrics.record_update(cancelled)
            logger.info("%s cancelled", execution_id)

    async def end_failed(
        self, execution_id: str, reason: str, error: Exception | None = None
    ) -> None:
        """Record why an execution failed.

        Its files are kept if they are results, or if a retry can use them.
        """
        execution = await self.records.read(execution_id)
        if execution.status in FINISHED - {Status.FAILED}:
            return
        # A failure that is recorded already may have been queued for its next attempt.
        if execution.status not in (Status.FAILED, Status.QUEUED):
            await self.records.update(execution_id, status=Status.FAILED, error_message=reason)
            self.metrics.record_failure(execution, error)
        with execution_bound(execution_id, execution.workflow, execution.stage):
            if execution.results is not None:
                await best_effort_cleanup(self.packager, "clean", execution_id)
            elif isinstance(error, DiskFull) or not execution.has_complete_members:
                # No retry can use the files, or they are what filled the disk.
                if await self._purge(execution):
                    self.withdrawals.start(execution)
                    mark = self.records.store.mark_files_removed
                    await retry_on_db_outage(partial(self.records.write, mark, execution_id))

    async def mark_completed(
        self, execution_id: str, results: Manifest, progress: Progress | None
    ) -> None:
        """Record the results and the end of an execution; a later cancel has no effect.

        Not a recorded step: the execution's own record says that this was done.
        """
        await shield(self._complete(execution_id, results, progress))

    async def _complete(
        self, execution_id: str, results: Manifest, progress: Progress | None
    ) -> None:
        seconds = await self.records.mark_completed(execution_id, results, progress)
        if seconds is not None:
            logger.info("%s completed in %.1f s", execution_id, seconds)
        await best_effort_cleanup(self.packager, "clean", execution_id)

    async def _purge(self, execution: Execution) -> bool:
        return await best_effort_cleanup(
            self.packager, "purge", execution.workflow, execution.execution_id
        )

    @asynccontextmanager
    async def holding_back(self, execution_id: str) -> AsyncIterator[None]:
        """Keep an execution from beginning while the block removes what an attempt has left."""
        done = self._held_back[execution_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._held_back[execution_id]
            done.set()

    async def close(self, drain_s: float) -> None:
        """Let no more executions begin, and stop those that still run after `drain_s` seconds.

        These stay pending in DBOS.
        """
        self._is_closed = True
        for task in self._cancelling.values():
            task.cancel()
        unfinished = {execution.task for execution in self.active.values()}
        if unfinished:
            _, unfinished = await asyncio.wait(unfinished, timeout=drain_s)
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)


def _plan_of(execution: Execution) -> Plan | CustomPlan:
    if is_custom(execution.plan):
        return CustomPlan.model_validate(execution.plan)
    return Plan.model_validate(execution.plan)


def _reason(error: Exception) -> str:
    """Return why an execution failed, as text for its client."""
    if isinstance(error, DBOSMaxStepRetriesExceeded):
        return f"{error.errors[-1]} (given up after {len(error.errors)} attempts)"
    return str(error) or type(error).__name__


def _log_failure(execution_id: str, error: Exception) -> None:
    if isinstance(error, StageFailed):
        logger.error("%s failed at %s: %s", execution_id, error.stage, _reason(error))
        return
    # After retries, the log of the replica has the traceback that matters.
    trace = None if isinstance(error, DBOSMaxStepRetriesExceeded) else error
    logger.error("%s failed: %s", execution_id, _reason(error), exc_info=trace)
