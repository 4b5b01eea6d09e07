"""Reads and writes the records of executions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from deployments.conductor.fencing import end_superseded_process
from deployments.conductor.metrics import ExecutionMetrics
from deployments.runtime.log_context import set_stage
from deployments.runtime.retries import retry_on_db_outage
from deployments.store.conductor_view import ConductorStore
from workflows.errors import StaleConductor
from workflows.execution import FINISHED, Execution, Progress, Stage, Status
from workflows.manifest import Manifest

R = TypeVar("R")


@dataclass(eq=False)
class ExecutionRecords:
    """Reads and writes the records of executions on behalf of one Conductor."""

    store: ConductorStore
    fence: int
    """The Conductor's fencing token, sent with every write. If the store refuses it, this process
    ends."""
    metrics: ExecutionMetrics

    async def read(self, execution_id: str) -> Execution:
        """Return the record of an execution, retrying while the database is unavailable."""
        return await retry_on_db_outage(partial(asyncio.to_thread, self.store.read, execution_id))

    async def write(self, method: Callable[..., R], *args: Any, **values: Any) -> R:
        """Call a method of the store in a thread, with the fencing token as first argument."""
        try:
            return await asyncio.to_thread(method, self.fence, *args, **values)
        except StaleConductor as error:
            end_superseded_process(str(error))

    async def update(self, execution_id: str, **values: Any) -> None:
        """Update a record, see `ConductorStore.update`."""
        update = partial(self.write, self.store.update, execution_id, **values)
        updated = await retry_on_db_outage(update)
        set_stage(updated.stage)
        self.metrics.record_update(updated)

    async def enter_stage(
        self,
        execution_id: str,
        stage: Stage,
        status: Status | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Record that an execution has reached a stage; a resumed one never goes back."""
        execution = await self.read(execution_id)
        if execution.stage is None or execution.stage.is_before(stage):
            await self.update(execution_id, stage=stage, status=status, progress=progress)

    async def enter_delivery(
        self, execution_id: str, stage: Stage, results: Manifest, progress: Progress | None
    ) -> None:
        """Record that results are complete and their delivery has reached a stage."""
        execution = await self.read(execution_id)
        if execution.status not in FINISHED:
            passed = execution.stage is not None and stage.is_before(execution.stage)
            await self.update(
                execution_id,
                stage=execution.stage if passed else stage,
                status=Status.PENDING_RESULTS,
                progress=progress,
                results=execution.manifest(results),
            )

    async def keep_incomplete_results(
        self, execution_id: str, results: Manifest, progress: Progress
    ) -> None:
        """Record the results of an execution that is about to fail, so that they can be read."""
        execution = await self.read(execution_id)
        if execution.status not in FINISHED:
            await self.update(
                execution_id,
                stage=Stage.PACKAGE,
                progress=progress,
                results=execution.manifest(results, Status.FAILED),
            )

    async def mark_completed(
        self, execution_id: str, results: Manifest, progress: Progress | None
    ) -> float | None:
        """Record the results and the end of an execution in one update.

        Returns its seconds from start to end; None if it had finished before.
        """
        execution = await self.read(execution_id)
        if execution.status in FINISHED:
            return None
        manifest = execution.manifest(results)
        await self.update(
            execution_id,
            status=Status.COMPLETED,
            stage=Stage.FINISH,
            progress=progress,
            results=manifest,
        )
        return manifest.execution_time_seconds
