"""FCN3: one ensemble member at a time, each step handed to the Packager as it is computed.

With an interpolation to hourly steps it also conditions the forecasts of other models.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.initial_conditions.client import InitialConditionsClient
from deployments.models.buffer_pool import BufferPool
from deployments.models.busy_clock import BusyClock, Doing
from deployments.models.checkpointing import Checkpoints
from deployments.models.fcn3_rollout import (
    check_coordinates,
    check_hourly,
    conditioning,
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
from deployments.models.router import ROUTER
from deployments.models.state import UnusableCheckpoint, can_go_on
from deployments.models.worker import Job, ModelWorker, written_steps
from deployments.models.write_window import WriteWindow
from deployments.results.checkpoint import Checkpoint
from deployments.runtime.failures import TransientFailure, in_words
from deployments.runtime.gpus import has_gpu, hide_gpus
from deployments.runtime.import_path import LoaderOptions, describe_origin, load
from deployments.runtime.log_context import bind_execution
from workflows.base import Conditioning, Plan
from workflows.errors import ModelUnavailable
from workflows.execution import Stage

logger = logging.getLogger("ray.serve")


Steps = Callable[["Loaded", Callable[[], None]], Generator[NDArray[np.float32]]]
"""Gives the fields of each step; the second argument raises if it shall stop."""


@dataclass
class Loaded:
    """A model, and what makes its steps hourly if it could be had."""

    model: Any
    hourly: Any = None
    hourly_failure: str | None = None

    @property
    def all(self) -> tuple[Any, ...]:
        """The model and what belongs to it."""
        return (self.model,) if self.hourly is None else (self.model, self.hourly)


@serve.deployment(
    name="FCN3",
    max_ongoing_requests=MAX_CALLS_PER_REPLICA,
    request_router_config={"request_router_class": ROUTER},
)
class FCN3:
    """Serves an FCN3 model, real or synthetic.

    Parameters
    ----------
    options : FCN3Options
    packager : DeploymentHandle
        Writes the steps.
    initial_conditions : DeploymentHandle, optional
        Gives initial conditions that are not on this machine's disk.
    """

    async def __init__(  # type: ignore[misc]
        self,
        options: FCN3Options,
        packager: DeploymentHandle[Any],
        initial_conditions: DeploymentHandle[Any] | None = None,
    ) -> None:
        self._options = options
        self._packager = packager
        self._analyses = InitialConditionsClient(initial_conditions)
        self._device = "cuda" if has_gpu() else "cpu"
        self._memory, self._kept_memory = BufferPool(), BufferPool()
        self._turn = GpuLock(options.turns, self._device)
        self._replica = ModelWorker(
            options.loader.name, self._load, clock=BusyClock(options.loader.name, self._device)
        )
        await self._replica.start()

    def _load(self) -> Loaded:
        if self._device == "cpu":
            hide_gpus()
        with self._turn.loading() as put_aside:
            model = load(self._options.loader, device=self._device)
            check_coordinates(model, self._options.grid, self._options.input_variables)
            if self._options.checkpoint_steps is not None and not can_go_on(model):
                logger.warning(
                    "model %s has no state that could be kept: a member that is interrupted "
                    "begins anew",
                    self._options.loader.name,
                )
            loaded = Loaded(model)
            if self._options.interpolation is not None:
                self._load_interpolation(loaded, self._options.interpolation)
            put_aside(*loaded.all)
        return loaded

    def _load_interpolation(self, loaded: Loaded, options: LoaderOptions) -> None:
        """Load it; a failure is kept as the reason: forecasts do not need it."""
        try:
            loaded.hourly = load(options, device=self._device, px_model=loaded.model)
            check_hourly(loaded.hourly, self._options.grid)
            loaded.hourly_failure = None
        except Exception as error:
            loaded.hourly = None
            failure = in_words(error)
            # Once: it is tried again every few seconds.
            if failure != loaded.hourly_failure:
                logger.exception("model %s could not be loaded", options.name)
            loaded.hourly_failure = failure

    def _load_interpolation_again(self, loaded: Loaded, options: LoaderOptions) -> None:
        with self._turn.loading() as put_aside:
            self._load_interpolation(loaded, options)
            put_aside(*loaded.all)

    async def describe(self, name: str | None = None) -> dict[str, Any]:
        """Say which model this is, for the provenance of results.

        Parameters
        ----------
        name : str, optional
            ``interpolation`` for what makes the steps hourly.

        Raises
        ------
        ModelUnavailable
            If it could not be loaded, with the reason.
        """
        loaded = await self._replica.model()
        options = self._options.interpolation
        if name is None or options is None or name != options.name:
            return dict(describe_origin(loaded.model, self._options.loader))
        # Not while somebody computes: whoever asks would wait for the end of that.
        if loaded.hourly is None and not self._replica.is_busy:
            await self._replica.between_jobs(
                lambda loaded: self._load_interpolation_again(loaded, options)
            )
        return dict(describe_origin(_hourly(loaded), options))

    async def forecast_member(self, job: MemberJob) -> AsyncGenerator[MemberProgress]:
        """Compute a member and have every step written; tells how many are.

        The same plan, member and initial conditions give the same arrays, whatever ran before.

        Raises
        ------
        StaleConductor
            If a newer Conductor has been seen.
        ExecutionCancelled
            If the caller went away: the thread has stopped then.
        TransientFailure
            If the model did not go on from its checkpoint, which is removed: the next attempt
            begins anew.
        """
        bind_execution(job.execution_id, job.plan.workflow, Stage.INFERENCE)
        model = describe_origin(await self._replica.model(), self._options.loader)
        origin = json.dumps([model, job.execution_id, job.member])
        checkpoints = Checkpoints(
            self._packager, job, self._options.checkpoint_steps, origin, self._kept_memory
        )
        checkpoint = await checkpoints.find()
        state = await self._state(job, job.plan) if checkpoint is None else None
        window = self._window(job, self._packager.write_step, checkpoint)

        def steps(loaded: Loaded, _: Callable[[], None]) -> Generator[NDArray[np.float32]]:
            return forecast(
                loaded.model,
                job,
                state,
                self._memory,
                checkpoint=checkpoint,
                keep=lambda step, fields: checkpoints.keep(loaded.model, step, fields, window),
            )

        try:
            async with self._written(job, steps, window, "forecast") as told:
                async for progress in told:
                    yield progress
        except UnusableCheckpoint as error:
            # Left where it is, every attempt would end like this one.
            await checkpoints.drop()
            raise TransientFailure(
                Stage.INFERENCE,
                f"member {job.member} begins anew: its checkpoint is of no use: {error}",
            ) from None
        await checkpoints.drop()

    async def condition_member(self, job: ConditioningJob) -> AsyncGenerator[MemberProgress]:
        """Compute the fields that condition a forecast, hour by hour; tells how many are there.

        Raises
        ------
        StaleConductor, ExecutionCancelled
            As `forecast_member`.
        ModelUnavailable
            If there is no interpolation to hourly steps.
        """
        bind_execution(job.execution_id, job.plan.workflow, Stage.INFERENCE)
        state = await self._state(job, job.plan.conditioning)
        async with self._written(
            job,
            lambda loaded, check: conditioning(loaded.model, _hourly(loaded), job, check, state),
            self._window(job, self._packager.write_conditioning),
            "conditioning",
        ) as told:
            async for progress in told:
                yield progress

    async def _state(
        self, job: MemberJob, plan: Plan | Conditioning | None
    ) -> NDArray[np.float32] | None:
        """Open or get the initial conditions, while another job may still have the GPU."""
        if plan is None:
            return None
        found = await self._analyses.find(job.initial_conditions, plan, job.execution_id)
        return found.fields

    def _window(
        self, job: MemberJob, writer: Any, checkpoint: Checkpoint | None = None
    ) -> WriteWindow:
        async def write(index: int, fields: NDArray[np.float32]) -> None:
            await writer.remote(job.execution_id, job.fence, job.member, index, fields)

        return WriteWindow(
            write,
            self._options.window_steps,
            give_back=self._memory.give_back,
            written=0 if checkpoint is None else checkpoint.step + 1,
        )

    def _written(
        self, job: MemberJob, steps: Steps, window: WriteWindow, what: str
    ) -> aclosing[AsyncGenerator[MemberProgress]]:
        def in_turn(loaded: Loaded, running: Job) -> Generator[NDArray[np.float32]]:
            with (
                running.during(Doing.TURN),
                self._turn.computing(*loaded.all, check=running.check),
                running.during(Doing.BUSY),
                closing(steps(loaded, running.check)) as each,
            ):
                yield from each

        return aclosing(written_steps(self._replica, Job(job.fence), in_turn, window, what))


def _hourly(loaded: Loaded) -> Any:
    if loaded.hourly is None:
        raise ModelUnavailable(
            Stage.INFERENCE,
            f"model interpolation could not be loaded: {loaded.hourly_failure or 'none is set'}",
        )
    return loaded.hourly
