"""Run a rollout in the thread of a model, and have each of its time steps written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.exceptions import RayServeException

from deployments.models.busy_clock import Activity
from deployments.models.messages import MemberProgress
from deployments.models.worker import ModelWorker
from deployments.models.worker_job import WorkerJob
from deployments.models.write_window import WriteWindow

Rollout = Callable[[Any, WorkerJob], Generator[NDArray[np.float32]]]
"""Called with the model and the job, in the model's thread; yields the fields of each step."""


async def write_rollout(
    worker: ModelWorker, job: WorkerJob, rollout: Rollout, window: WriteWindow, work: str
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
    loop = asyncio.get_running_loop()
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
