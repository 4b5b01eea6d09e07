"""What the replicas of all prognostic models have in common: they compute members of forecasts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.initial_conditions.client import InitialConditionsClient
from deployments.models.buffer_pool import BufferPool, Floats
from deployments.models.checkpointing import Checkpoints
from deployments.models.description import check_plan, describe_model
from deployments.models.forecast import Forecaster
from deployments.models.gpu_lock import GpuLock
from deployments.models.messages import MemberJob, MemberProgress
from deployments.models.options import ModelOptions
from deployments.models.random_numbers import RandomNumbers
from deployments.models.rollout import member_window, on_gpu, write_rollout
from deployments.models.state import (
    UnusableCheckpoint,
    resumes_from_output,
    supports_checkpoints,
)
from deployments.models.write_window import WriteWindow
from deployments.runtime.failures import TransientFailure
from deployments.runtime.import_path import load, load_component, origin_of
from deployments.runtime.log_context import bind_execution
from deployments.runtime.worker import ModelWorker
from deployments.runtime.worker_job import WorkerJob
from workflows.base import Component, Conditioning, Plan
from workflows.dataset import Origin
from workflows.errors import ModelUnavailable
from workflows.execution import Stage
from workflows.model_description import ModelDescription
from workflows.readiness import ComponentStatus, NotReady, Ready

logger = logging.getLogger("ray.serve")

IDLE_CHECK_S = 10.0


@dataclass
class LoadedModel:
    """A prognostic model, its description, and the diagnostics of each workflow."""

    model: Any
    description: ModelDescription
    diagnostics: dict[str, list[Any]]

    @property
    def on_gpu(self) -> tuple[Any, ...]:
        """What occupies the GPU."""
        return (self.model, *(each for loaded in self.diagnostics.values() for each in loaded))


class ModelReplica:
    """Computes members of forecasts by one model; the base of the deployments of models.

    Parameters
    ----------
    options : ModelOptions
    packager : DeploymentHandle
        Writes the steps.
    initial_conditions : DeploymentHandle, optional
        Serves initial conditions that are not on this machine's disk.
    """

    async def __init__(  # type: ignore[misc]
        self,
        options: ModelOptions,
        packager: DeploymentHandle[Any],
        initial_conditions: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._options = options
        self._packager = packager
        self._initial_conditions = InitialConditionsClient(initial_conditions)
        self._step_buffers, self._checkpoint_buffers = BufferPool(), BufferPool()
        self._worker = ModelWorker(options.loader.name, self._load)
        self._gpu_lock = GpuLock(options.gpu_locks, self._worker.device, options.idle_unload_s)
        await self._worker.start()
        self._unloading = asyncio.create_task(self._unload_when_idle(), name="unload-when-idle")

    async def _unload_when_idle(self) -> None:
        while self._options.idle_unload_s is not None:
            await asyncio.sleep(min(self._options.idle_unload_s / 4, IDLE_CHECK_S))
            if not self._gpu_lock.is_idle or self._worker.is_busy:
                continue
            try:
                await self._worker.load_more(lambda each: self._gpu_lock.unload_idle(*each.on_gpu))
                logger.info("model %s has left the GPU", self._options.loader.name)
            except Exception:
                # It is tried again after the next job.
                logger.exception("model %s could not leave the GPU", self._options.loader.name)

    def _load(self) -> LoadedModel:
        with self._gpu_lock.loading() as offload:
            loaded = self._load_model()
            offload(*loaded.on_gpu)
        return loaded

    def _load_model(self) -> LoadedModel:
        options = self._options
        device = self._gpu_lock.load_device
        model = load(options.loader, device=device)
        diagnostics = {
            workflow: [load(each, device=device) for each in loaders]
            for workflow, loaders in options.diagnostics.items()
        }
        for component in options.perturbations:
            _perturb(model, component)
        description = describe_model(model, diagnostics, options.stochastic)
        loaded = LoadedModel(model, description, diagnostics)
        if options.checkpoint_steps is not None and self._checkpoint_steps(loaded) is None:
            logger.warning(
                "the state of model %s cannot be saved: an interrupted member restarts from "
                "the beginning",
                options.loader.name,
            )
        return loaded

    def _checkpoint_steps(self, loaded: LoadedModel) -> int | None:
        """Return the steps from one checkpoint to the next; None if the model supports none."""
        if not supports_checkpoints(loaded.model):
            return None
        if resumes_from_output(loaded.model) and not loaded.description.output_is_input:
            return None
        return self._options.checkpoint_steps

    async def check_readiness(self, name: str | None = None) -> ComponentStatus:
        """Return whether the model can be used; retries a load that failed."""
        try:
            loaded: LoadedModel = await self._worker.model()
            return Ready(origin=await self._origin(name), description=loaded.description)
        except ModelUnavailable as error:
            return NotReady(reason=error.reason)

    async def _origin(self, name: str | None) -> Origin:
        """Return where a model comes from; None is this replica's forecast model."""
        loaded: LoadedModel = await self._worker.model()
        return origin_of(loaded.model, self._options.loader)

    async def forecast_member(self, job: MemberJob) -> AsyncGenerator[MemberProgress]:
        """Compute a member, and yield how many of its steps are written.

        The same plan, member and initial conditions always yield the same arrays.

        Raises
        ------
        StaleConductor
            If a newer Conductor has called.
        StageFailed
            If the plan was made for another model.
        ExecutionCancelled
            If the call was cancelled; the thread has stopped by then.
        TransientFailure
            If the model cannot resume from its checkpoint. The checkpoint is removed, so the next
            attempt starts from the beginning.
        """
        bind_execution(job.execution_id, job.plan.workflow, Stage.INFERENCE)
        loaded = await self._worker.model()
        check_plan(job.plan, loaded.description)
        model = await self._origin(None)
        origin = json.dumps([model.model_dump(), job.execution_id, job.member])
        checkpoints = Checkpoints(
            self._packager, job, self._checkpoint_steps(loaded), origin, self._checkpoint_buffers
        )
        checkpoint = await checkpoints.find()
        start = checkpoint or await self._initial_state(job, job.plan)
        written = 0 if checkpoint is None else checkpoint.step + 1
        window = self._window(self._packager.write_step, job, written)

        def rollout(loaded: LoadedModel, running: WorkerJob) -> Generator[Floats]:
            def save(step: int, fields: Any, numbers: RandomNumbers) -> None:
                checkpoints.save(loaded.model, step, fields, numbers, window)

            component = job.plan.perturbation
            forecaster = Forecaster(
                loaded.model,
                None if component is None else partial(_perturb, loaded.model, component),
                loaded.diagnostics.get(job.plan.workflow, ()),
            )
            steps = forecaster.steps(job, start, self._step_buffers, save)
            return on_gpu(self._gpu_lock, loaded.on_gpu, running, steps)

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

    async def _initial_state(self, job: MemberJob, plan: Plan | Conditioning) -> Floats:
        """Return the initial conditions; fetched while another job may still use the GPU."""
        find = self._initial_conditions.find
        return (await find(job.initial_conditions, plan, job.execution_id)).fields

    def _window(self, writer: Any, job: MemberJob, written: int = 0) -> WriteWindow:
        size, release = self._options.window_steps, self._step_buffers.release
        return member_window(writer, job, size, release=release, written=written)


def _perturb(model: Any, component: Component) -> Any:
    """Return a new perturbation; one that breeds its perturbations receives the model."""
    return load_component(component, model=model)
