"""The FCN3 deployment: computes one ensemble member at a time.

With an interpolation to hourly steps it also computes the fields that condition nowcasts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.initial_conditions.client import InitialConditionsClient
from deployments.models.buffer_pool import BufferPool, Floats
from deployments.models.checkpointing import Checkpoints
from deployments.models.fcn3_rollout import (
    check_coordinates,
    check_interpolation,
    conditioning_fields,
    forecast,
)
from deployments.models.gpu_lock import GpuLock
from deployments.models.messages import (
    MAX_CALLS_PER_REPLICA,
    ConditioningJob,
    MemberJob,
    MemberProgress,
)
from deployments.models.options import FCN3Options
from deployments.models.rollout import member_window, on_gpu, write_rollout
from deployments.models.router import ROUTER
from deployments.models.state import UnusableCheckpoint, supports_checkpoints
from deployments.models.write_window import WriteWindow
from deployments.runtime.failures import TransientFailure, describe_error
from deployments.runtime.import_path import LoaderOptions, load, origin_of
from deployments.runtime.log_context import bind_execution
from deployments.runtime.worker import ModelWorker
from deployments.runtime.worker_job import WorkerJob
from workflows.base import Conditioning, Plan
from workflows.dataset import Origin
from workflows.errors import ModelUnavailable
from workflows.execution import Stage
from workflows.fcn3 import VARIABLES
from workflows.readiness import ComponentStatus, NotReady, Ready

logger = logging.getLogger("ray.serve")


@dataclass
class LoadedModels:
    """FCN3, and the interpolation around it if it could be loaded."""

    fcn3: Any
    interpolation: Any = None
    interpolation_failure: str | None = None

    @property
    def on_gpu(self) -> tuple[Any, ...]:
        """The models that occupy the GPU."""
        return (self.fcn3,) if self.interpolation is None else (self.fcn3, self.interpolation)

    def require_interpolation(self) -> Any:
        """Return the interpolation; raises `ModelUnavailable` if it could not be loaded."""
        if self.interpolation is None:
            reason = self.interpolation_failure or "it is not configured"
            raise ModelUnavailable(
                Stage.INFERENCE, f"model interpolation could not be loaded: {reason}"
            )
        return self.interpolation


@serve.deployment(
    name="FCN3",
    max_ongoing_requests=MAX_CALLS_PER_REPLICA,
    request_router_config={"request_router_class": ROUTER},
    # Loading and compiling a model may keep the interpreter for half a minute.
    health_check_period_s=10,
    health_check_timeout_s=30,
)
class FCN3:
    """Serves an FCN3 model, real or synthetic.

    Parameters
    ----------
    options : FCN3Options
    packager : DeploymentHandle
        Writes the steps.
    initial_conditions : DeploymentHandle, optional
        Serves initial conditions that are not on this machine's disk.
    """

    async def __init__(  # type: ignore[misc]
        self,
        options: FCN3Options,
        packager: DeploymentHandle[Any],
        initial_conditions: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._options = options
        self._packager = packager
        self._initial_conditions = InitialConditionsClient(initial_conditions)
        self._step_buffers, self._checkpoint_buffers = BufferPool(), BufferPool()
        self._worker = ModelWorker(options.loader.name, self._load)
        self._gpu_lock = GpuLock(options.gpu_locks, self._worker.device)
        await self._worker.start()

    def _load(self) -> LoadedModels:
        options = self._options
        with self._gpu_lock.loading() as offload:
            model = load(options.loader, device=self._worker.device)
            check_coordinates(model, options.grid, VARIABLES)
            if options.checkpoint_steps is not None and not supports_checkpoints(model):
                logger.warning(
                    "the state of model %s cannot be saved: an interrupted member restarts from "
                    "the beginning",
                    options.loader.name,
                )
            models = LoadedModels(model)
            if options.interpolation is not None:
                self._load_interpolation(models, options.interpolation)
            offload(*models.on_gpu)
        return models

    def _load_interpolation(self, models: LoadedModels, options: LoaderOptions) -> None:
        """Load the interpolation; an error is kept, not raised: forecasts do not need it."""
        try:
            models.interpolation = load(options, device=self._worker.device, px_model=models.fcn3)
            check_interpolation(models.interpolation, self._options.grid)
            models.interpolation_failure = None
        except Exception as error:
            models.interpolation = None
            failure = describe_error(error)
            # Logged once: loading is retried every few seconds.
            if failure != models.interpolation_failure:
                logger.exception("model %s could not be loaded", options.name)
            models.interpolation_failure = failure

    def _retry_interpolation(self, models: LoadedModels, options: LoaderOptions) -> None:
        with self._gpu_lock.loading() as offload:
            self._load_interpolation(models, options)
            offload(*models.on_gpu)

    async def check_readiness(self, name: str | None = None) -> ComponentStatus:
        """Return whether FCN3, or the interpolation by its name, can be used; retries its load."""
        try:
            return Ready(origin=await self._origin(name))
        except ModelUnavailable as error:
            return NotReady(reason=error.reason)

    async def _origin(self, name: str | None) -> Origin:
        models: LoadedModels = await self._worker.model()
        options = self._options.interpolation
        if name is None or options is None or name != options.name:
            return origin_of(models.fcn3, self._options.loader)
        # Not while a job runs: the caller would wait for its end.
        if models.interpolation is None and not self._worker.is_busy:
            await self._worker.load_more(lambda models: self._retry_interpolation(models, options))
        return origin_of(models.require_interpolation(), options)

    async def forecast_member(self, job: MemberJob) -> AsyncGenerator[MemberProgress]:
        """Compute a member, and yield how many of its steps are written.

        The same plan, member and initial conditions always yield the same arrays.

        Raises
        ------
        StaleConductor
            If a newer Conductor has called.
        ExecutionCancelled
            If the call was cancelled; the thread has stopped by then.
        TransientFailure
            If the model cannot resume from its checkpoint. The checkpoint is removed, so the next
            attempt starts from the beginning.
        """
        bind_execution(job.execution_id, job.plan.workflow, Stage.INFERENCE)
        model = await self._origin(None)
        origin = json.dumps([model.model_dump(), job.execution_id, job.member])
        checkpoints = Checkpoints(
            self._packager, job, self._options.checkpoint_steps, origin, self._checkpoint_buffers
        )
        checkpoint = await checkpoints.find()
        start = checkpoint or await self._initial_state(job, job.plan)
        written = 0 if checkpoint is None else checkpoint.step + 1
        window = self._window(self._packager.write_step, job, written)

        def rollout(models: LoadedModels, running: WorkerJob) -> Generator[Floats]:
            def save(step: int, fields: Any) -> None:
                checkpoints.save(models.fcn3, step, fields, window)

            steps = forecast(models.fcn3, job, start, self._step_buffers, save)
            return on_gpu(self._gpu_lock, models.on_gpu, running, steps)

        updates = write_rollout(self._worker, job.fence, rollout, window, "forecast")
        try:
            async with aclosing(updates):
                async for progress in updates:
                    yield progress
        except UnusableCheckpoint as error:
            # Otherwise every attempt would fail like this one.
            await checkpoints.remove()
            raise TransientFailure(
                Stage.INFERENCE,
                f"member {job.member} restarts: its checkpoint cannot be used: {error}",
            ) from None
        await checkpoints.remove()

    async def condition_member(self, job: ConditioningJob) -> AsyncGenerator[MemberProgress]:
        """Compute the hourly fields that condition a nowcast, and yield how many are written.

        Raises
        ------
        StaleConductor, ExecutionCancelled
            As `forecast_member`.
        ModelUnavailable
            If the interpolation could not be loaded.
        """
        bind_execution(job.execution_id, job.plan.workflow, Stage.INFERENCE)
        state = await self._initial_state(job, cast(Conditioning, job.plan.conditioning))

        def rollout(models: LoadedModels, running: WorkerJob) -> Generator[Floats]:
            interpolation = models.require_interpolation()
            steps = conditioning_fields(models.fcn3, interpolation, job, state, running.check)
            return on_gpu(self._gpu_lock, models.on_gpu, running, steps)

        window = self._window(self._packager.write_conditioning, job)
        updates = write_rollout(self._worker, job.fence, rollout, window, "conditioning")
        async with aclosing(updates):
            async for progress in updates:
                yield progress

    async def _initial_state(self, job: MemberJob, plan: Plan | Conditioning) -> Floats:
        """Return the initial conditions; fetched while another job may still use the GPU."""
        find = self._initial_conditions.find
        return (await find(job.initial_conditions, plan, job.execution_id)).fields

    def _window(self, writer: Any, job: MemberJob, written: int = 0) -> WriteWindow:
        size, release = self._options.window_steps, self._step_buffers.release
        return member_window(writer, job, size, release=release, written=written)
