"""A job's wait for the event loop, in the thread of a model."""

from __future__ import annotations

import asyncio

import pytest

from deployments.runtime.busy_clock import Activity
from deployments.runtime.worker_job import WorkerJob
from workflows.errors import ExecutionCancelled


async def test_stopping_the_job_ends_a_wait_and_cancels_the_future() -> None:
    loop = asyncio.get_running_loop()
    job = WorkerJob(1)
    future = asyncio.run_coroutine_threadsafe(asyncio.Event().wait(), loop)
    waiting = asyncio.create_task(asyncio.to_thread(job.wait_for, future, Activity.WRITING))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    job.stop()

    with pytest.raises(ExecutionCancelled):
        await waiting
    assert future.cancelled()


async def test_a_wait_returns_the_result_or_raises_the_error() -> None:
    loop = asyncio.get_running_loop()
    job = WorkerJob(1)

    async def outcome(value: int | Exception) -> int:
        if isinstance(value, Exception):
            raise value
        return value

    def wait(value: int | Exception) -> int:
        future = asyncio.run_coroutine_threadsafe(outcome(value), loop)
        return job.wait_for(future, Activity.WRITING)

    assert await asyncio.to_thread(wait, 3) == 3
    with pytest.raises(OSError, match="disk"):
        await asyncio.to_thread(wait, OSError("disk"))
