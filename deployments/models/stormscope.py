"""StormScope: one ensemble member at a time, conditioned on fields as another model gives them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import aclosing, closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.initial_conditions.client import InitialConditionsClient
from deployments.models.busy_clock import BusyClock, Doing
from deployments.models.gpu_lock import GpuLock
from deployments.models.messages import MAX_CALLS_PER_REPLICA, MemberProgress, NowcastJob
from deployments.models.options import StormScopeOptions
from deployments.models.router import ROUTER
from deployments.models.stormscope_rollout import Nowcaster, nowcast, prepare
from deployments.models.worker import Job, ModelWorker, written_steps
from deployments.models.write_window import WriteWindow
from deployments.runtime.failures import is_transient
from deployments.runtime.gpus import has_gpu, hide_gpus
from deployments.runtime.import_path import describe_origin, load
from deployments.runtime.log_context import bind_execution
from workflows.errors import StageFailed
from workflows.execution import Stage

logger = logging.getLogger("ray.serve")

Floats = NDArray[np.float32]
Fetch = Callable[[int], Coroutine[Any, Any, Floats]]

ATTEMPTS = 5
PAUSE_S = 0.5
LOOKS = 10
"""Of half a second each: a folder that many nodes see may show a file late."""


@serve.deployment(
    name="StormScope",
    max_ongoing_requests=MAX_CALLS_PER_REPLICA,
    request_router_config={"request_router_class": ROUTER},
)
class StormScope:
    """Serves a StormScope model, real or synthetic.

    Parameters
    ----------
    options : StormScopeOptions
    packager : DeploymentHandle
        Writes the steps, and keeps the fields that condition them.
    initial_conditions : DeploymentHandle, optional
        Gives images that are not on this machine's disk.
    """

    async def __init__(  # type: ignore[misc]
        self,
        options: StormScopeOptions,
        packager: DeploymentHandle[Any],
        initial_conditions: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._options = options
        self._packager = packager
        self._analyses = InitialConditionsClient(initial_conditions)
        self._device = "cuda" if has_gpu() else "cpu"
        self._turn = GpuLock(options.turns, self._device)
        self._replica = ModelWorker(
            options.loader.name, self._load, clock=BusyClock(options.loader.name, self._device)
        )
        await self._replica.start()

    def _load(self) -> Nowcaster:
        if self._device == "cpu":
            hide_gpus()
        options = self._options
        with self._turn.loading() as put_aside:
            model = load(options.loader, device=self._device)
            nowcaster = prepare(
                model, options.grid, options.conditioning_grid, options.input_variables
            )
            put_aside(model)
        return nowcaster

    async def describe(self) -> dict[str, Any]:
        """Say which model this is, for the provenance of results.

        Raises
        ------
        ModelUnavailable
            If it could not be loaded, with the reason.
        """
        nowcaster: Nowcaster = await self._replica.model()
        return dict(describe_origin(nowcaster.model, self._options.loader))

    async def nowcast_member(self, job: NowcastJob) -> AsyncGenerator[MemberProgress]:
        """Compute a member and have every step written; tells how many are.

        Each step waits for the field that conditions it. The same plan, member, image and fields
        give the same arrays, whatever ran before.

        Raises
        ------
        StaleConductor
            If a newer Conductor has been seen.
        StageFailed
            If the satellite's image has gaps.
        ExecutionCancelled
            If the caller went away: the thread has stopped then.
        """
        bind_execution(job.execution_id, job.plan.workflow, Stage.INFERENCE)
        loop = asyncio.get_running_loop()
        image = await self._analyses.find(job.initial_conditions, job.plan, job.execution_id)

        async def write(index: int, fields: Floats) -> None:
            await self._packager.write_step.remote(
                job.execution_id, job.fence, job.member, index, fields
            )

        def steps(nowcaster: Nowcaster, running: Job) -> Generator[Floats]:
            fields = FieldPrefetcher(lambda step: self._field(job, step), job, running, loop)
            with (
                running.during(Doing.TURN),
                self._turn.computing(nowcaster.model, check=running.check),
                running.during(Doing.BUSY),
                closing(fields),
                closing(nowcast(nowcaster, job, fields.of, image)) as each,
            ):
                yield from each

        window = WriteWindow(write, self._options.window_steps)
        async with aclosing(written_steps(self._replica, Job(job.fence), steps, window)) as told:
            async for progress in told:
                yield progress

    async def _field(self, job: NowcastJob, step: int) -> Floats:
        """Wait for the field that conditions a step, however long it takes to be computed.

        Raises
        ------
        StageFailed
            If it must have been there before and is not: nobody will compute it again.
        """
        member = job.plan.conditioned_by(job.member)
        failures = looks = 0
        while True:
            try:
                field: Floats | None = await self._packager.read_conditioning.remote(
                    job.execution_id, member, step
                )
            except Exception as error:
                failures += 1
                if not is_transient(error) or failures == ATTEMPTS:
                    raise
                logger.warning("a field of %s not read, again: %s", job.execution_id, error)
                await asyncio.sleep(PAUSE_S * 2**failures)
            else:
                if field is not None:
                    return field
                looks += 1
                if job.all_conditioned and looks == LOOKS:
                    raise StageFailed(
                        Stage.INFERENCE,
                        f"the field that conditions step {step} of member {job.member} is lost",
                    )


class FieldPrefetcher:
    """Fields that condition a member; the next is fetched while the model computes.

    Parameters
    ----------
    fetch : callable
        Gives a coroutine that waits for a step's field.
    job : NowcastJob
    running : Job
        Stops the waiting.
    loop : AbstractEventLoop
        Where fields are fetched.
    """

    def __init__(
        self, fetch: Fetch, job: NowcastJob, running: Job, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._fetch = fetch
        self._n_steps = job.plan.n_steps
        self._running = running
        self._loop = loop
        self._next: Future[Floats] | None = None

    def of(self, step: int) -> Floats:
        """Give a step's field; to be asked for one after the other, in the model's thread."""
        field = self._running.wait_for(self._next or self._begin(step), Doing.CONDITIONING)
        self._next = self._begin(step + 1) if step + 1 < self._n_steps else None
        return field

    def _begin(self, step: int) -> Future[Floats]:
        return asyncio.run_coroutine_threadsafe(self._fetch(step), self._loop)

    def close(self) -> None:
        """Stop fetching."""
        if self._next is not None:
            self._next.cancel()
