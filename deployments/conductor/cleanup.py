"""Removing what executions leave behind, so that it changes nothing of how they ended."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.blob_uploader.messages import UploadJob
from deployments.runtime.failures import retry_transient
from deployments.runtime.log_context import bind_execution
from deployments.runtime.retries import RetryPolicy
from workflows.execution import Execution

logger = logging.getLogger("ray.serve")

REMOVAL = RetryPolicy(attempts=4, initial_delay_s=0.5)
WITHDRAWALS = 2
"""At once: the uploader's places are for uploads."""
SOON_S = 5.0
LIMIT_S = 600.0
"""A million blobs take some minutes; an uploader that never comes must not hold up a retry."""


async def best_effort_cleanup(deployment: DeploymentHandle[Any], method: str, *args: Any) -> bool:
    """Call what removes files, some times if need be; says whether they are gone."""

    async def call() -> None:
        response = getattr(deployment, method).remote(*args)
        try:
            await response
        except asyncio.CancelledError:
            response.cancel()
            raise

    try:
        await retry_transient(call, method, REMOVAL)
    except Exception:
        logger.exception("%s was in vain: files stay behind", method)
        return False
    return True


class Withdrawals:
    """Removes what was uploaded of results that were removed before they were whole.

    Nobody waits long for that but the next attempt: Azure may be away, or the uploader's node.

    Parameters
    ----------
    blob_uploader : DeploymentHandle or None
        None where nothing is uploaded (any more).
    """

    def __init__(self, blob_uploader: DeploymentHandle[Any] | None) -> None:
        self._uploader = blob_uploader
        self._places = asyncio.Semaphore(WITHDRAWALS)
        self.running: dict[str, asyncio.Task[None]] = {}
        """By execution."""

    def begin(self, execution: Execution) -> None:
        """Begin with what an execution has left, if there can be any."""
        execution_id = execution.execution_id
        job = UploadJob.unfinished(execution)
        if job is None or self._uploader is None or execution_id in self.running:
            return
        task = asyncio.create_task(
            self._withdraw(self._uploader, job), name=f"withdraw {execution_id}"
        )
        self.running[execution_id] = task
        task.add_done_callback(lambda _: self.running.pop(execution_id))

    async def soon(self, execution: Execution) -> None:
        """Begin, and wait for a moment: what takes longer goes on beside."""
        self.begin(execution)
        if (task := self.running.get(execution.execution_id)) is not None:
            await asyncio.wait({task}, timeout=SOON_S)

    async def over(self, execution_id: str) -> None:
        """Wait until nothing of an execution is being removed."""
        if (task := self.running.get(execution_id)) is not None:
            await asyncio.wait({task})

    def stop(self) -> None:
        """Stop where they are."""
        for task in self.running.values():
            task.cancel()

    async def _withdraw(self, uploader: DeploymentHandle[Any], job: UploadJob) -> None:
        bind_execution(job.execution_id, job.workflow)
        async with self._places:
            try:
                async with asyncio.timeout(LIMIT_S):
                    await best_effort_cleanup(uploader, "withdraw", job)
            except TimeoutError:
                logger.warning("chunks stay in %s: no answer in time", job.container.url)
