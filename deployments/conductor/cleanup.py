"""Removes the files that executions leave behind, without changing how they ended."""

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
CONCURRENT_WITHDRAWALS = 2
"""Few, since the uploader's slots are meant for uploads."""
SHORT_WAIT_S = 5.0
TIMEOUT_S = 600.0
"""A million blobs take some minutes; an uploader that does not answer must not delay a retry."""


async def best_effort_cleanup(deployment: DeploymentHandle[Any], method: str, *args: Any) -> bool:
    """Call a method that removes files, with retries, and return whether it succeeded."""

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
        logger.exception("%s failed; files were left behind", method)
        return False
    return True


class Withdrawals:
    """Removes from containers what was uploaded of results that were never completed.

    Runs in the background, since Azure or the uploader may be unavailable: only the next attempt
    at the same execution waits for it. Does nothing without an uploader.
    """

    def __init__(self, blob_uploader: DeploymentHandle[Any] | None) -> None:
        self._uploader = blob_uploader
        self._limit = asyncio.Semaphore(CONCURRENT_WITHDRAWALS)
        self.running: dict[str, asyncio.Task[None]] = {}
        """By execution id."""

    def start(self, execution: Execution) -> None:
        """Begin to remove what an execution may have uploaded."""
        execution_id = execution.execution_id
        job = UploadJob.unfinished(execution)
        if job is None or self._uploader is None or execution_id in self.running:
            return
        task = asyncio.create_task(
            self._withdraw(self._uploader, job), name=f"withdraw {execution_id}"
        )
        self.running[execution_id] = task
        task.add_done_callback(lambda _: self.running.pop(execution_id))

    async def start_and_wait(self, execution: Execution) -> None:
        """Begin, and wait for the end for a few seconds; a longer removal continues alone."""
        self.start(execution)
        if (task := self.running.get(execution.execution_id)) is not None:
            await asyncio.wait({task}, timeout=SHORT_WAIT_S)

    async def wait(self, execution_id: str) -> None:
        """Wait until nothing of an execution is being removed."""
        if (task := self.running.get(execution_id)) is not None:
            await asyncio.wait({task})

    def stop(self) -> None:
        """Cancel all removals."""
        for task in self.running.values():
            task.cancel()

    async def _withdraw(self, uploader: DeploymentHandle[Any], job: UploadJob) -> None:
        bind_execution(job.execution_id, job.workflow)
        async with self._limit:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await best_effort_cleanup(uploader, "withdraw", job)
            except TimeoutError:
                logger.warning(
                    "no answer in time; chunks were left behind in %s", job.container.url
                )
