"""The StormScope deployment: computes one member of a nowcast at a time.

Each step is conditioned on a field that another model computes meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import aclosing, closing
from functools import partial
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.initial_conditions.client import InitialConditionsClient
from deployments.models.buffer_pool import Floats
from deployments.models.gpu_lock import GpuLock
from deployments.models.messages import MemberProgress, NowcastJob
from deployments.models.options import StormScopeOptions
from deployments.models.rollout import member_window, on_gpu, write_rollout
from deployments.models.router import MODEL_DEPLOYMENT
from deployments.models.stormscope_rollout import Nowcaster, nowcast, prepare
from deployments.models.write_window import PACKAGER_CALL
from deployments.runtime.busy_clock import Activity
from deployments.runtime.failures import retry_transient
from deployments.runtime.import_path import load, origin_of
from deployments.runtime.log_context import bind_execution
from deployments.runtime.worker import ModelWorker
from deployments.runtime.worker_job import WorkerJob
from workflows.errors import ModelUnavailable, StageFailed
from workflows.execution import Stage
from workflows.readiness import ComponentStatus, NotReady, Ready
from workflows.stormscope import VARIABLES

Fetch = Callable[[int], Coroutine[Any, Any, Floats]]

MAX_READS = 10
"""Attempts to read a field that exists, 0.5 s each: a shared disk may show a file late."""


@serve.deployment(name="StormScope", **MODEL_DEPLOYMENT)
class StormScope:
    """Serves a StormScope model, real or synthetic.

    Parameters
    ----------
    options : StormScopeOptions
    packager : DeploymentHandle
        Writes the steps, and keeps the fields that condition them.
    initial_conditions : DeploymentHandle, optional
        Serves satellite images that are not on this machine's disk.
    """

    async def __init__(  # type: ignore[misc]
        self,
        options: StormScopeOptions,
        packager: DeploymentHandle[Any],
        initial_conditions: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._options = options
        self._packager = packager
        self._initial_conditions = InitialConditionsClient(initial_conditions)
        self._worker = ModelWorker(options.loader.name, self._load)
        self._gpu_lock = GpuLock(options.gpu_locks, self._worker.device)
        await self._worker.start()

    def _load(self) -> Nowcaster:
        options = self._options
        with self._gpu_lock.loading() as offload:
            model = load(options.loader, device=self._worker.device)
            nowcaster = prepare(model, options.grid, options.conditioning_grid, VARIABLES)
            offload(model)
        return nowcaster

    async def check_readiness(self) -> ComponentStatus:
        """Return whether the model can be used; retries a load that failed."""
        try:
            nowcaster: Nowcaster = await self._worker.model()
        except ModelUnavailable as error:
            return NotReady(reason=error.reason)
        return Ready(origin=origin_of(nowcaster.model, self._options.loader))

    async def nowcast_member(self, job: NowcastJob) -> AsyncGenerator[MemberProgress]:
        """Compute a member, and yield how many of its steps are written.

        Each step waits for the field that conditions it. The same plan, member, image and fields
        always yield the same arrays.

        Raises
        ------
        StaleConductor
            If a newer Conductor has called.
        StageFailed
            If the satellite image has gaps, or a conditioning field is lost.
        ExecutionCancelled
            If the call was cancelled; the thread has stopped by then.
        """
        bind_execution(job.execution_id, job.plan.workflow, Stage.INFERENCE)
        loop = asyncio.get_running_loop()
        find = self._initial_conditions.find
        image = await find(job.initial_conditions, job.plan, job.execution_id)

        def rollout(nowcaster: Nowcaster, running: WorkerJob) -> Generator[Floats]:
            fetch = partial(self._field, job)
            fields = FieldPrefetcher(fetch, job.plan.n_steps, running, loop)
            steps = nowcast(nowcaster, job, image, fields.get)
            with closing(fields):
                yield from on_gpu(self._gpu_lock, [nowcaster.model], running, steps)

        window = member_window(self._packager.write_step, job, self._options.window_steps)
        updates = write_rollout(self._worker, job.fence, rollout, window, "forecast")
        async with aclosing(updates):
            async for progress in updates:
                yield progress

    async def _field(self, job: NowcastJob, step: int) -> Floats:
        """Wait for the field that conditions a step, however long its computation takes.

        Raises
        ------
        StageFailed
            If the field was written and cannot be found: nothing would compute it again.
        """
        member = job.plan.conditioned_by(job.member)
        reads = 0
        while True:
            field: Floats | None = await retry_transient(
                lambda: self._packager.read_conditioning.remote(job.execution_id, member, step),
                f"reading a conditioning field of {job.execution_id}",
                PACKAGER_CALL,
            )
            if field is not None:
                return field
            reads += 1
            if job.all_conditioned and reads == MAX_READS:
                raise StageFailed(
                    Stage.INFERENCE,
                    f"the field that conditions step {step} of member {job.member} is lost",
                )


class FieldPrefetcher:
    """Fetches the field that conditions the next step while the model computes.

    Parameters
    ----------
    fetch : callable
        Returns a coroutine that waits for the field of a step.
    n_steps : int
    running : WorkerJob
        Stops the wait.
    loop : AbstractEventLoop
        Runs the coroutines.
    """

    def __init__(
        self, fetch: Fetch, n_steps: int, running: WorkerJob, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._fetch = fetch
        self._n_steps = n_steps
        self._running = running
        self._loop = loop
        self._next: Future[Floats] | None = None

    def get(self, step: int) -> Floats:
        """Return the field of a step; called for steps in order, in the model's thread."""
        field = self._running.wait_for(self._next or self._start(step), Activity.CONDITIONING)
        self._next = self._start(step + 1) if step + 1 < self._n_steps else None
        return field

    def _start(self, step: int) -> Future[Floats]:
        return asyncio.run_coroutine_threadsafe(self._fetch(step), self._loop)

    def close(self) -> None:
        """Cancel the pending fetch."""
        if self._next is not None:
            self._next.cancel()
