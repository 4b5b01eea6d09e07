"""The FCN3 deployment: forecasts, and hourly fields that condition nowcasts."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from ray import serve

from deployments.models.buffer_pool import Floats
from deployments.models.fcn3_rollout import (
    check_coordinates,
    check_interpolation,
    conditioning_fields,
)
from deployments.models.messages import ConditioningJob, MemberProgress
from deployments.models.options import FCN3Options
from deployments.models.replica import LoadedModel, ModelReplica
from deployments.models.rollout import on_gpu, write_rollout
from deployments.models.router import MODEL_DEPLOYMENT
from deployments.runtime.failures import describe_error
from deployments.runtime.import_path import LoaderOptions, load, origin_of
from deployments.runtime.log_context import bind_execution
from deployments.runtime.worker_job import WorkerJob
from workflows.base import Conditioning
from workflows.dataset import Origin
from workflows.errors import ModelUnavailable
from workflows.execution import Stage
from workflows.fcn3 import VARIABLES

logger = logging.getLogger("ray.serve")


@dataclass
class LoadedModels(LoadedModel):
    """FCN3, and the interpolation around it if it could be loaded."""

    interpolation: Any = None
    interpolation_failure: str | None = None

    @property
    def on_gpu(self) -> tuple[Any, ...]:
        """What occupies the GPU."""
        own = super().on_gpu
        return own if self.interpolation is None else (*own, self.interpolation)

    def require_interpolation(self) -> Any:
        """Return the interpolation; raises `ModelUnavailable` if it could not be loaded."""
        if self.interpolation is None:
            reason = self.interpolation_failure or "it is not configured"
            raise ModelUnavailable(
                Stage.INFERENCE, f"model interpolation could not be loaded: {reason}"
            )
        return self.interpolation


@serve.deployment(name="FCN3", **MODEL_DEPLOYMENT)
class FCN3(ModelReplica):
    """Serves an FCN3 model, real or synthetic, with an interpolation to hourly steps."""

    _options: FCN3Options

    def _load_model(self) -> LoadedModels:
        loaded = LoadedModels(**vars(super()._load_model()))
        check_coordinates(loaded.model, self._options.grid, VARIABLES)
        if self._options.interpolation is not None:
            self._load_interpolation(loaded, self._options.interpolation)
        return loaded

    def _load_interpolation(self, models: LoadedModels, options: LoaderOptions) -> None:
        """Load the interpolation; an error is kept, not raised: forecasts do not need it."""
        try:
            models.interpolation = load(options, device=self._worker.device, px_model=models.model)
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

    async def _origin(self, name: str | None) -> Origin:
        models: LoadedModels = await self._worker.model()
        options = self._options.interpolation
        if name is None or options is None or name != options.name:
            return await super()._origin(name)
        # Not while a job runs: the caller would wait for its end.
        if models.interpolation is None and not self._worker.is_busy:
            await self._worker.load_more(lambda models: self._retry_interpolation(models, options))
        return origin_of(models.require_interpolation(), options)

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
            steps = conditioning_fields(models.model, interpolation, job, state, running.check)
            return on_gpu(self._gpu_lock, models.on_gpu, running, steps)

        window = self._window(self._packager.write_conditioning, job)
        updates = write_rollout(self._worker, job.fence, rollout, window, "conditioning")
        async with aclosing(updates):
            async for progress in updates:
                yield progress
