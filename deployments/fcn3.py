"""FCN3: one ensemble member at a time, each step handed to the Packager as it is computed."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments._isolation import has_gpu, hide_gpus
from deployments._loading import LoaderOptions, describe_origin, load
from deployments._model_replica import Job, MemberProgress, ModelReplica
from deployments._step_window import StepWindow
from workflows.base import Grid, Plan
from workflows.errors import ModelUnavailable
from workflows.execution import Stage

logger = logging.getLogger("ray.serve")


class FCN3Options(BaseModel):
    """What an FCN3 replica needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loader: LoaderOptions
    grid: Grid
    input_variables: tuple[str, ...]
    window_steps: int
    """Steps that may be computed but not yet written."""


class MemberJob(BaseModel):
    """One ensemble member to compute."""

    model_config = ConfigDict(frozen=True)

    execution_id: str
    plan: Plan
    member: int
    initial_conditions: str
    """Path of a ``.npy`` file, float32, shape (variable, lat, lon)."""
    fence: int


@serve.deployment(name="FCN3", max_ongoing_requests=2)
class FCN3:
    """Serves an FCN3 model, real or synthetic.

    Parameters
    ----------
    options : FCN3Options
    packager : DeploymentHandle
        Writes the steps.
    """

    async def __init__(self, options: FCN3Options, packager: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        self._options = options
        self._packager = packager
        self._replica = ModelReplica(options.loader.name, self._load)
        await self._replica.start()

    def _load(self) -> Any:
        device = "cuda" if has_gpu() else "cpu"
        if device == "cpu":
            hide_gpus()
        model = load(self._options.loader, device=device)
        check_coordinates(model, self._options)
        return model

    async def describe(self) -> dict[str, Any]:
        """Say which model this is, for the provenance of results.

        Raises
        ------
        ModelUnavailable
            If it could not be loaded, with the reason.
        """
        model = await self._replica.model()
        return dict(describe_origin(model, self._options.loader))

    async def forecast_member(self, job: MemberJob) -> AsyncGenerator[MemberProgress]:
        """Compute a member and have every step written; tells how many are.

        The same plan, member and initial conditions give the same arrays, whatever ran before.

        Raises
        ------
        StaleConductor
            If a newer Conductor has been seen.
        ExecutionCancelled
            If the caller went away: the thread has stopped then.
        """
        loop = asyncio.get_running_loop()
        running = Job(job.fence)

        async def write(time_index: int, fields: NDArray[np.float32]) -> None:
            await self._packager.write_step.remote(
                job.execution_id, job.fence, job.member, time_index, fields
            )

        window = StepWindow(write, self._options.window_steps)
        running.progress = lambda: MemberProgress(written=window.written)

        def work(model: Any) -> None:
            for time_index, fields in enumerate(forecast(model, job)):
                running.check()
                running.wait_for(
                    asyncio.run_coroutine_threadsafe(window.put(time_index, fields), loop)
                )

        try:
            # Closed here, not by the garbage collector: the thread must have stopped by then.
            async with aclosing(self._replica.run(running, work, window.close)) as told:
                async for progress in told:
                    yield progress
        finally:
            await window.abandon()


def forecast(model: Any, job: MemberJob) -> Iterator[NDArray[np.float32]]:
    """Run a model over one member.

    Yields
    ------
    ndarray, shape (variable, lat, lon)
        The plan's variables at each time, initial conditions first; longitudes 0 to 360. A copy:
        models overwrite what they gave on the next step.
    """
    plan = job.plan
    state = np.load(job.initial_conditions, mmap_mode="r")[None, None]
    coords = OrderedDict(
        time=np.array([plan.start()]).astype("datetime64[ns]"),
        lead_time=np.array([np.timedelta64(0, "h")]),
        variable=np.array(plan.input_variables),
        lat=plan.grid.latitudes(),
        lon=plan.grid.longitudes(),
    )
    # Consumed at the iterator's first step: no other iterator may be made in between.
    model.set_rng(seed=plan.seeds[job.member], reset=True)
    iterator = model.create_iterator(_as_model_input(model, state), coords)
    chosen: list[int] | None = None
    for _ in range(plan.n_times):
        fields, given = next(iterator)
        if chosen is None:
            names = [str(name) for name in given["variable"]]
            chosen = [names.index(name) for name in plan.variables]
        yield _to_host(fields[0, 0], chosen)


def _as_model_input(model: Any, state: NDArray[np.float32]) -> Any:
    """Copy the state to where the model computes: it overwrites its input."""
    if getattr(model, "numpy_native", False):
        return np.array(state)
    import torch

    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    device = parameter.device if parameter is not None else "cpu"
    return torch.from_numpy(np.array(state)).to(device)


def _to_host(fields: Any, chosen: list[int]) -> NDArray[np.float32]:
    """Copy chosen variables, shape (variable, lat, lon), into memory of the host."""
    picked = fields[chosen]
    if isinstance(picked, np.ndarray):
        return np.ascontiguousarray(picked, dtype=np.float32)
    host: NDArray[np.float32] = picked.detach().float().cpu().numpy()
    return host


def check_coordinates(model: Any, options: FCN3Options) -> None:
    """Refuse a model whose coordinates are not those that plans are made with.

    Raises
    ------
    ModelUnavailable
        Naming what differs.
    """
    given: Mapping[str, Any] = model.input_coords()
    names = tuple(str(name) for name in given["variable"])
    if names != options.input_variables:
        odd = sorted(set(names) ^ set(options.input_variables))[:5] or "in another order"
        raise ModelUnavailable(Stage.INFERENCE, f"the model's variables differ: {odd}")
    for name, wanted in (
        ("lat", options.grid.latitudes()),
        ("lon", options.grid.longitudes()),
    ):
        if given[name].shape != wanted.shape or not np.allclose(given[name], wanted):
            raise ModelUnavailable(
                Stage.INFERENCE,
                f"the model has {given[name].size} values of {name} from {given[name][0]:g} to "
                f"{given[name][-1]:g}; configured in models.fcn3.grid are {wanted.size} from "
                f"{wanted[0]:g} to {wanted[-1]:g}",
            )
