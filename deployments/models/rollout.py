"""Run a rollout in the thread of a model, on its GPU, and have each time step written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException

from deployments.models.buffer_pool import Floats
from deployments.models.gpu_lock import GpuLock
from deployments.models.messages import MemberJob, MemberProgress
from deployments.models.write_window import WriteWindow
from deployments.runtime.busy_clock import Activity
from deployments.runtime.worker import ModelWorker
from deployments.runtime.worker_job import WorkerJob

Rollout = Callable[[Any, WorkerJob], Generator[Floats]]
"""Called with the model and the job, in the model's thread; yields the fields of each step."""


def on_gpu(
    lock: GpuLock, models: Sequence[Any], job: WorkerJob, steps: Generator[Floats]
) -> Generator[Floats]:
    """Yield time steps that are computed with the models on the GPU, while its lock is held."""
    with (
        job.during(Activity.GPU_LOCK),
        lock.computing(*models, check=job.check),
        job.during(Activity.BUSY),
        closing(steps),
    ):
        yield from steps


def member_window(writer: Any, job: MemberJob, size: int, **options: Any) -> WriteWindow:
    """Return a `WriteWindow` that calls a method of the Packager with each step of a member."""

    async def write(index: int, fields: Floats) -> None:
        await writer.remote(job.execution_id, job.fence, job.member, index, fields)

    return WriteWindow(write, size, **options)


async def write_rollout(
    worker: ModelWorker, fence: int, rollout: Rollout, window: WriteWindow, work: str
) -> AsyncGenerator[MemberProgress]:
    """Run a rollout and yield how many of its steps are written.

    Parameters
    ----------
    window : WriteWindow
        Writes the steps. The first step of the rollout follows those that it has written before.
    work : str
        What the steps are computed for, as a label of metrics.

    Raises
    ------
    ExecutionCancelled
        If the job was stopped.
    """
    loop, job = asyncio.get_running_loop(), WorkerJob(fence)
    replica, first = _replica_id(), window.written
    job.progress = lambda: MemberProgress(written=window.written, first=first, replica=replica)

    def run(model: Any) -> None:
        with closing(rollout(model, job)) as steps:
            for index, fields in enumerate(worker.clock.steps(steps, work), first):
                job.check()
                put = asyncio.run_coroutine_threadsafe(window.put(index, fields), loop)
                job.wait_for(put, Activity.WRITING)

    try:
        # Closed here, not by the garbage collector: the thread must have stopped by then.
        async with aclosing(worker.run(job, run, window.close)) as updates:
            async for progress in updates:
                yield progress
    finally:
        await window.abandon()


def _replica_id() -> str | None:
    """Return Serve's id of this replica; None outside of Serve."""
    try:
        return serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return None
