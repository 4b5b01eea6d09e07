"""The Conductor's loop: wait for the lease, then serve the queue until stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.conductor.calls import DeploymentCalls
from deployments.conductor.capacity import WorkflowCapacity
from deployments.conductor.cleanup import Withdrawals
from deployments.conductor.context import ExecutionContext
from deployments.conductor.dbos_setup import dbos_launched
from deployments.conductor.fencing import end_superseded_process
from deployments.conductor.lease import lease_for
from deployments.conductor.member_scheduler import MemberScheduler
from deployments.conductor.metrics import ExecutionMetrics
from deployments.conductor.options import ConductorOptions
from deployments.conductor.origins import Origins
from deployments.conductor.progress import ProgressTracker
from deployments.conductor.purges import Purges
from deployments.conductor.queue import ExecutionQueue
from deployments.conductor.readiness import ReadinessWatch
from deployments.conductor.records import ExecutionRecords
from deployments.conductor.retention import Retention
from deployments.conductor.steady_clock import SteadyClock
from deployments.conductor.steps import ExecutionSteps
from deployments.conductor.workflow import ExecutionWorkflow
from deployments.store.conductor_view import ConductorStore

logger = logging.getLogger("ray.serve")

HEARTBEAT_S = 1.0
"""Also how long a request can wait if its nudge was lost."""
LEASE_POLL_S = 0.25
COPIED_AT_ONCE = 5
"""Manifests, which may have megabytes, that are copied in one transaction."""


class ConductorLoop:
    """Stands by until it gets the lease, then runs executions until it is stopped.

    Its parameters are those of `deployments.conductor.deployment.Conductor` and `ReadinessWatch`.
    """

    context: ExecutionContext
    """The executions that run here; set once the lease is held."""

    def __init__(
        self,
        options: ConductorOptions,
        deployments: dict[str, DeploymentHandle[Any]],
        components: dict[str, str],
        *,
        metrics: ExecutionMetrics | None = None,
        scaled_to_zero: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        self._options = options
        self._deployments = deployments
        self._components = components
        self._metrics = metrics or ExecutionMetrics()
        self._scaled_to_zero = scaled_to_zero
        self._store = ConductorStore(options.store_url)
        self._lease = lease_for(self._store.engine)
        self._nudged = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()

    def nudge(self) -> None:
        """Look at the store at once."""
        self._nudged.set()

    async def stop(self) -> None:
        """Stop; a successor resumes the executions that do not end within `drain_s`."""
        self._stopping.set()
        self._nudged.set()
        await self._stopped.wait()

    async def run(self) -> None:
        """Wait for the lease, then lead until `stop` is called."""
        try:
            # In threads: a database may be slow, and health checks must still be answered.
            while not await asyncio.to_thread(self._lease.try_acquire):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), LEASE_POLL_S)
                    return
            fence = await asyncio.to_thread(self._store.issue_fence)
            logger.info("conducting with fencing token %s", fence)
            await self._run_as_leader(fence)
        finally:
            self._lease.release()
            self._stopped.set()

    async def _run_as_leader(self, fence: int) -> None:
        """Serve the queue until `stop` is called; however this ends, no step runs after it."""
        options, metrics, deployments = self._options, self._metrics, self._deployments
        packager = deployments["packager"]
        origins = Origins(self._components)
        scheduler = MemberScheduler(options.replicas)
        capacity = WorkflowCapacity(options.max_running, self.nudge)
        withdrawals = Withdrawals(deployments.get("blob_uploader"))
        records = ExecutionRecords(self._store, fence, metrics)
        calls = DeploymentCalls(deployments, fence, scheduler, metrics)
        self.context = context = ExecutionContext(
            records, packager, withdrawals, scheduler, capacity, metrics
        )
        progress = ProgressTracker(context.active, records, options.models_share_gpu)
        steps = ExecutionSteps(calls, records, progress, capacity, origins)
        workflow = ExecutionWorkflow(context, progress, steps)
        queue = ExecutionQueue(records, context, workflow, metrics)
        purges = Purges(records, context, packager)
        clock = SteadyClock(options.retention.settle_s)
        retention = Retention(records, context, packager, options.retention, clock)
        readiness = ReadinessWatch(
            self._components, deployments, self._store, records.write, origins, self._scaled_to_zero
        )
        claimed = await asyncio.to_thread(self._store.running)
        # Before DBOS recovers them: one that ends at once must be counted before it is removed.
        for execution in claimed:
            capacity.take(execution)
        background: list[asyncio.Task[None]] = []
        async with dbos_launched(options.store_url):
            try:
                await queue.reconcile(claimed)
                duties = (readiness.run(), retention.run(), self._copy_former_manifests(records))
                background += map(asyncio.create_task, duties)
                await self._serve(queue, purges, records, background)
            finally:
                for task in background:
                    task.cancel()
                purges.stop()
                await context.close(options.drain_s)
                withdrawals.stop()

    async def _copy_former_manifests(self, records: ExecutionRecords) -> None:
        """Copy manifests of an earlier release, which can write no more: its token is superseded.

        In several transactions: many large ones take longer than others wait for the write lock.
        """
        store = self._store
        ids = await asyncio.to_thread(store.with_former_manifests)
        for start in range(0, len(ids), COPIED_AT_ONCE):
            batch = ids[start : start + COPIED_AT_ONCE]
            await records.write(store.copy_former_manifests, batch)

    async def _serve(
        self,
        queue: ExecutionQueue,
        purges: Purges,
        records: ExecutionRecords,
        background: Collection[asyncio.Task[None]],
    ) -> None:
        next_heartbeat = time.monotonic()
        while not self._stopping.is_set():
            self._nudged.clear()
            for task in background:
                if task.done():
                    # Raise its error: the process that replaces this one restarts it.
                    task.result()
            await queue.cancel_requested()
            while not self._stopping.is_set() and await queue.claim_next():
                pass
            await purges.start_requested()
            if not await asyncio.to_thread(self._lease.held):
                end_superseded_process("the lease was lost")
            # Not at every nudge: a heartbeat takes the write lock, for which submits wait.
            if time.monotonic() >= next_heartbeat:
                await records.write(self._store.record_heartbeat)
                next_heartbeat = time.monotonic() + HEARTBEAT_S
                queued = await asyncio.to_thread(self._store.queued)
                self._metrics.record_heartbeat(queued, self._options.max_running)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._nudged.wait(), HEARTBEAT_S)
