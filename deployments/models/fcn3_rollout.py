"""The steps of FCN3 for one ensemble member: a forecast, or what conditions another one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deployments.models.buffer_pool import BufferPool
from deployments.models.messages import ConditioningJob, MemberJob
from deployments.models.state import UnusableCheckpoint, set_internal_state
from deployments.results.checkpoint import Checkpoint
from deployments.runtime.failures import in_words
from workflows.base import Conditioning, Plan
from workflows.errors import ModelUnavailable
from workflows.execution import Stage
from workflows.grids import Grid


def forecast(
    model: Any,
    job: MemberJob,
    state: NDArray[np.float32] | None = None,
    memory: BufferPool | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    keep: Callable[[int, Any], None] = lambda _, __: None,
) -> Generator[NDArray[np.float32]]:
    """Run a model over one member.

    Parameters
    ----------
    state : ndarray, shape (variable, lat, lon), optional
        The initial conditions; read from the job's path by default.
    memory : HostMemory, optional
        Gives what is yielded.
    checkpoint : Checkpoint, optional
        Where to go on.
    keep : callable
        Told every time index but the last and all fields that the model gave for it, shape
        (variable, lat, lon), after they were taken and before the model goes on.

    Yields
    ------
    ndarray, shape (variable, lat, lon)
        The plan's variables at each time, initial conditions first, or the one behind the
        checkpoint; longitudes 0 to 360. A copy: models overwrite what they gave on the next step.

    Raises
    ------
    UnusableCheckpoint
        Before the first step, if the model does not go on from there.
    """
    plan, memory = job.plan, memory or BufferPool()
    seed, first = plan.seeds[job.member], 0
    if checkpoint is None:
        iterator = _iterator(model, model, plan, seed, _state(job, state))
    else:
        lead_hours = checkpoint.step * plan.step_hours
        iterator = _iterator(model, model, plan, seed, checkpoint.state, lead_hours)
        try:
            # What it was begun with, which is written; this sets the model's state, too.
            next(iterator)
            set_internal_state(model, checkpoint.internal)
        except Exception as error:
            raise UnusableCheckpoint(in_words(error)) from error
        first = checkpoint.step + 1
    chosen: list[int] | None = None
    for index in range(first, plan.n_times):
        fields, given = next(iterator)
        if chosen is None:
            chosen = _places(given, plan.variables)
        yield memory.fields(fields[0, 0], chosen)
        if index < plan.n_steps:
            keep(index, fields[0, 0])


def conditioning(
    model: Any,
    hourly: Any,
    job: ConditioningJob,
    check: Callable[[], None] = lambda: None,
    state: NDArray[np.float32] | None = None,
) -> Generator[NDArray[np.float32]]:
    """Run a model hour by hour up to the last that conditions a step of the plan.

    Parameters
    ----------
    hourly : PrognosticModel
        Interpolates the steps of `model`.
    check : callable
        Called at every hour, those included that condition nothing; raises if the job shall stop.
    state : ndarray, shape (variable, lat, lon), optional
        The initial conditions; read from the job's path by default.

    Yields
    ------
    ndarray, shape (lat, lon)
        What conditions each step: at the hours that the plan names. Longitudes 0 to 360, without
        the south pole. A copy.
    """
    conditions = job.plan.conditioning
    if conditions is None:
        raise ValueError(f"{job.execution_id} is not conditioned")
    seed = conditions.seeds[job.member]
    iterator = _iterator(model, hourly, conditions, seed, _state(job, state))
    hours, memory = job.plan.conditioning_hours, BufferPool()
    for hour in range(hours.stop):
        check()
        fields, given = next(iterator)
        if hour in hours:
            # The interpolation, too, overwrites what it gave.
            yield memory.fields(fields[0, 0], _places(given, [conditions.variable]))[0]


def _state(job: MemberJob, state: NDArray[np.float32] | None) -> NDArray[np.float32]:
    return np.load(job.initial_conditions, mmap_mode="r") if state is None else state


def _iterator(
    model: Any,
    steps: Any,
    plan: Plan | Conditioning,
    seed: int,
    state: NDArray[np.float32],
    lead_hours: int = 0,
) -> Iterator[Any]:
    """Begin a run of one member with its state some hours after the start."""
    grid = cast(Grid, plan.grid)
    coords = OrderedDict(
        time=np.array([plan.start()]).astype("datetime64[ns]"),
        lead_time=np.array([np.timedelta64(lead_hours, "h")]),
        variable=np.array(plan.input_variables),
        lat=grid.latitudes(),
        lon=grid.longitudes(),
    )
    # Consumed at the iterator's first step: no other iterator may be made in between.
    model.set_rng(seed=seed, reset=True)
    iterator: Iterator[Any] = steps.create_iterator(
        _as_model_input(model, state[None, None]), coords
    )
    return iterator


def _places(coords: Mapping[str, Any], variables: Sequence[str]) -> list[int]:
    names = [str(name) for name in coords["variable"]]
    return [names.index(name) for name in variables]


def _as_model_input(model: Any, state: NDArray[np.float32]) -> Any:
    """Copy the state to where the model computes: it overwrites its input."""
    if getattr(model, "numpy_native", False):
        return np.array(state)
    import torch

    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    device = parameter.device if parameter is not None else "cpu"
    return torch.from_numpy(np.array(state)).to(device)


def check_coordinates(model: Any, grid: Grid, input_variables: tuple[str, ...]) -> None:
    """Refuse a model whose coordinates are not those that plans are made with.

    Raises
    ------
    ModelUnavailable
        Naming what differs.
    """
    given: Mapping[str, Any] = model.input_coords()
    names = tuple(str(name) for name in given["variable"])
    if names != input_variables:
        odd = sorted(set(names) ^ set(input_variables))[:5] or "in another order"
        raise ModelUnavailable(Stage.INFERENCE, f"the model's variables differ: {odd}")
    for name, wanted in (
        ("lat", grid.latitudes()),
        ("lon", grid.longitudes()),
    ):
        if given[name].shape != wanted.shape or not np.allclose(given[name], wanted):
            raise ModelUnavailable(
                Stage.INFERENCE,
                f"the model has {given[name].size} values of {name} from {given[name][0]:g} to "
                f"{given[name][-1]:g}; configured in models.fcn3.grid are {wanted.size} from "
                f"{wanted[0]:g} to {wanted[-1]:g}",
            )


def check_hourly(model: Any, grid: Grid) -> None:
    """Refuse an interpolation whose steps are no hours, or whose grid is another.

    Raises
    ------
    ModelUnavailable
        Naming what differs.
    """
    given: Mapping[str, Any] = model.output_coords(model.input_coords())
    step = np.asarray(given["lead_time"])[-1].astype("timedelta64[m]")
    if step != np.timedelta64(60, "m"):
        raise ModelUnavailable(
            Stage.INFERENCE, f"the interpolation has steps of {step}; hours are needed"
        )
    lat, lon = hourly_points(grid)
    for name, wanted in (("lat", lat), ("lon", lon)):
        if given[name].shape != wanted.shape or not np.allclose(given[name], wanted):
            raise ModelUnavailable(
                Stage.INFERENCE,
                f"the interpolation has {given[name].size} values of {name} from "
                f"{given[name][0]:g} to {given[name][-1]:g}; {wanted.size} from {wanted[0]:g} to "
                f"{wanted[-1]:g} are needed",
            )


def hourly_points(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give latitudes and longitudes of hourly fields: those of the model but for the south pole."""
    return grid.latitudes()[:-1], grid.longitudes()
