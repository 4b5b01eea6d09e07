"""Removes executions on request."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.conductor.attempts import remove_attempts
from deployments.conductor.context import ExecutionContext
from deployments.conductor.records import ExecutionRecords
from deployments.runtime.log_context import bind_execution
from workflows.execution import Execution

logger = logging.getLogger("ray.serve")

RETRY_DELAY_S = 10.0


@dataclass(eq=False)
class Purges:
    """Removes finished executions with their files and records."""

    records: ExecutionRecords
    context: ExecutionContext
    packager: DeploymentHandle[Any]
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)

    async def start_requested(self) -> None:
        """Begin the requested purges without waiting: removing a million files takes minutes."""
        for execution in await asyncio.to_thread(self.records.store.purge_requests):
            execution_id = execution.execution_id
            if execution_id not in self.context.active and execution_id not in self._tasks:
                self._tasks[execution_id] = asyncio.create_task(self._purge(execution))

    def stop(self) -> None:
        """Stop all purges; a successor begins them again."""
        for task in self._tasks.values():
            task.cancel()

    async def _purge(self, execution: Execution) -> None:
        execution_id = execution.execution_id
        bind_execution(execution_id, execution.workflow)
        try:
            await self.packager.purge.remote(execution.workflow, execution_id)
            await self.context.withdrawals.start_and_wait(execution)
            await remove_attempts(execution)
            await self.records.write(self.records.store.delete, execution_id)
        except Exception:
            logger.exception("%s not purged, retrying later", execution_id)
            await asyncio.sleep(RETRY_DELAY_S)
        finally:
            del self._tasks[execution_id]
