"""CustomWorkflow: one deployment for each user's workflow class."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, cast

from ray import serve

from deployments.custom_workflow.calling import provide_event_loop
from deployments.custom_workflow.earth2studio_shim import isolate_import
from deployments.custom_workflow.messages import Packaging, RunJob, RunResult
from deployments.custom_workflow.options import CustomWorkflowOptions
from deployments.custom_workflow.run import Run
from deployments.custom_workflow.run_output import import_backends
from deployments.custom_workflow.user_class import UserClass, guard_user_code
from deployments.runtime.log_context import bind_execution, bridge_loguru, set_stage
from deployments.runtime.retries import Backoff, RetryPolicy
from deployments.runtime.tasks import shield
from deployments.runtime.worker import ModelWorker
from deployments.runtime.worker_job import WorkerJob
from workflows.custom import WorkflowDescription
from workflows.dataset import Origin
from workflows.errors import ModelUnavailable, Problem
from workflows.execution import Progress, Stage
from workflows.readiness import ComponentStatus, NotReady, Ready

SCRATCH = ".earth2studio"
"""Folder for files that Earth2Studio's server would create elsewhere."""
RELOAD = RetryPolicy(initial_delay_s=10.0, max_delay_s=300.0)


@serve.deployment(
    name="CustomWorkflow",
    # The worker's lock admits one run at a time; the other calls are short and must not wait.
    max_ongoing_requests=32,
    # Users' code may call a library that keeps the interpreter for minutes: not a reason to end it.
    health_check_period_s=10,
    health_check_timeout_s=120,
)
class CustomWorkflow:
    """Serves a user's workflow class.

    Parameters
    ----------
    options : CustomWorkflowOptions
    """

    async def __init__(self, options: CustomWorkflowOptions) -> None:  # type: ignore[misc]
        self._options = options
        self._class: UserClass | None = None
        self._description: WorkflowDescription | None = None
        self._worker = ModelWorker(
            options.name,
            partial(guard_user_code, self._load),
            grace_s=options.cancel_grace_s,
            kind="workflow",
        )
        self._loop = asyncio.get_running_loop()
        self._import_ended = asyncio.Event()
        self._reload = Backoff(RELOAD)
        self._retry_at = 0.0
        # Not awaited: a class that hangs or crashes in its import must not keep the application
        # from being deployed.
        self._loading = asyncio.create_task(self._try_to_load())

    async def _try_to_load(self) -> None:
        try:
            await self._worker.model()
        except ModelUnavailable:
            # Logged where it was raised; `check_readiness` reports it and retries.
            delay_s = self._reload.next_delay_s() or RELOAD.max_delay_s
            self._retry_at = time.monotonic() + delay_s
        finally:
            self._import_ended.set()

    def _load(self) -> Any:
        """Import the class and create an instance, in the thread that will run it."""
        options = self._options
        provide_event_loop()
        if self._class is None:
            self._class = UserClass(options.path, options.storage.work_dir / SCRATCH)
        # Its weights may take minutes, but it can check parameters.
        self._loop.call_soon_threadsafe(self._import_ended.set)
        bridge_loguru()
        if not options.name_is_given and self._class.name != options.name:
            raise ValueError(
                f"the class has the name {self._class.name!r}, which could not be read from its "
                f"source: set workflows.custom[].name to it"
            )
        self._description = self._class.describe()
        with isolate_import(options.storage.work_dir / SCRATCH):
            instance = self._class.create(options.config)
        # Imported now, so that the first run does not wait for it.
        import_backends()
        bridge_loguru()
        return instance

    async def check_readiness(self) -> ComponentStatus:
        """Return whether the class can be run; retries a load that failed."""
        reason = self._worker.failure
        if not self._loading.done():
            reason = reason or "it is still being loaded"
        elif reason is not None and time.monotonic() >= self._retry_at:
            self._loading = asyncio.create_task(self._try_to_load())
        if reason is not None:
            return NotReady(reason=reason, description=self._description)
        origin = Origin(name=self._options.name, loader=self._options.path)
        return Ready(origin=origin, description=self._description)

    async def validate(self, parameters: Mapping[str, Any]) -> list[Problem]:
        """Have the class check parameters and return what is wrong; wait for its import first.

        Raises
        ------
        ModelUnavailable
            If the class could not be imported.
        """
        await self._import_ended.wait()
        if self._class is None:
            raise ModelUnavailable(Stage.INFERENCE, self._worker.failure or "not imported")
        return await asyncio.to_thread(
            guard_user_code, partial(self._class.problems_with, parameters)
        )

    async def run(self, job: RunJob) -> AsyncGenerator[Progress | Packaging | RunResult]:
        """Run the class once; yield its progress, and at the end its results.

        Raises
        ------
        StaleConductor
            If a newer Conductor has been seen.
        StageFailed
            If the class could not be loaded, or raises.
        ExecutionCancelled
            If the call was cancelled; the thread has stopped by then.
        """
        bind_execution(job.execution_id, job.plan.workflow, Stage.INFERENCE)
        worker_job = WorkerJob(job.fence)
        run = Run(job, self._options, worker_job)
        worker_job.progress = run.progress

        def work(instance: Any) -> None:
            run.call(cast(UserClass, self._class), instance)

        try:
            # Closed here, not by the garbage collector: the thread must have stopped by then.
            async with aclosing(self._worker.run(worker_job, work)) as updates:
                async for progress in updates:
                    if not worker_job.done:
                        yield progress
            set_stage(Stage.PACKAGE)
            yield Packaging(progress=run.progress())
            # The worker's lock is free: the next execution computes meanwhile.
            yield await shield(asyncio.to_thread(run.deliver))
        finally:
            await shield(asyncio.to_thread(run.close))
