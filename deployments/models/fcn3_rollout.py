"""The time steps of FCN3 for one member: a forecast, or the fields that condition a nowcast."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deployments.models.buffer_pool import BufferPool, Floats
from deployments.models.messages import ConditioningJob, MemberJob
from deployments.models.state import UnusableCheckpoint, set_internal_state
from deployments.results.checkpoint import Checkpoint
from deployments.runtime.failures import describe_error
from workflows.base import Conditioning, Plan
from workflows.errors import ModelUnavailable
from workflows.execution import Stage
from workflows.grids import Grid


def forecast(
    model: Any,
    job: MemberJob,
    start: Floats | Checkpoint,
    buffers: BufferPool,
    save: Callable[[int, Any], None],
) -> Generator[Floats]:
    """Roll out one member.

    Parameters
    ----------
    model : PrognosticModel
        FCN3, or a model with its interface.
    start : ndarray, shape (variable, lat, lon), or Checkpoint
        Initial conditions, or where to resume.
    buffers : BufferPool
        Memory for the fields that are yielded.
    save : callable
        Called after each step but the last, before the model continues, with its time index and
        all fields of the model, shape (variable, lat, lon).

    Yields
    ------
    ndarray, shape (variable, lat, lon)
        The plan's variables at each time, from the initial conditions, or from the first step
        after the checkpoint; longitudes 0 to 360. A copy: models overwrite their output.

    Raises
    ------
    UnusableCheckpoint
        Before the first step, if the model cannot resume from the checkpoint.
    """
    plan = job.plan
    seed, first = plan.seeds[job.member], 0
    if not isinstance(start, Checkpoint):
        steps = _iterator(model, model, plan, seed, start)
    else:
        lead_hours = start.step * plan.step_hours
        steps = _iterator(model, model, plan, seed, start.state, lead_hours)
        try:
            # The first fields are those of the checkpoint. Yielding them initializes the model's
            # internal state, so it is restored only afterwards.
            next(steps)
            set_internal_state(model, start.internal)
        except Exception as error:
            raise UnusableCheckpoint(describe_error(error)) from error
        first = start.step + 1
    indices: list[int] | None = None
    for index in range(first, plan.n_times):
        fields, coords = next(steps)
        if indices is None:
            indices = _variable_indices(coords, plan.variables)
        yield buffers.copy(fields[0, 0], indices)
        if index < plan.n_steps:
            save(index, fields[0, 0])


def conditioning_fields(
    model: Any, interpolation: Any, job: ConditioningJob, state: Floats, check: Callable[[], None]
) -> Generator[Floats]:
    """Roll out one member hour by hour, up to the last hour that conditions a step of the plan.

    Parameters
    ----------
    model : PrognosticModel
    interpolation : PrognosticModel
        Interpolates the steps of `model` to hours.
    state : ndarray, shape (variable, lat, lon)
        Initial conditions.
    check : callable
        Called at every hour, including those that condition nothing; raises to stop.

    Yields
    ------
    ndarray, shape (lat, lon)
        The field that conditions each step, on `interpolation_coordinates`. A copy.
    """
    conditioning = cast(Conditioning, job.plan.conditioning)
    seed = conditioning.seeds[job.member]
    steps = _iterator(model, interpolation, conditioning, seed, state)
    hours, buffers = job.plan.conditioning_hours, BufferPool()
    for hour in range(hours.stop):
        check()
        fields, coords = next(steps)
        if hour in hours:
            # The interpolation overwrites its output, too.
            yield buffers.copy(fields[0, 0], _variable_indices(coords, [conditioning.variable]))[0]


def _iterator(
    model: Any,
    stepper: Any,
    plan: Plan | Conditioning,
    seed: int,
    state: Floats,
    lead_hours: int = 0,
) -> Iterator[Any]:
    """Start one member from its state at a lead time.

    `stepper` is `model`, or the interpolation around it.
    """
    grid = cast(Grid, plan.grid)
    coords = OrderedDict(
        time=np.array([plan.start()]).astype("datetime64[ns]"),
        lead_time=np.array([np.timedelta64(lead_hours, "h")]),
        variable=np.array(plan.input_variables),
        lat=grid.latitudes(),
        lon=grid.longitudes(),
    )
    # The iterator reads the seed at its first step: create no other iterator until then.
    model.set_rng(seed=seed, reset=True)
    model_input = _as_model_input(model, state[None, None])
    return cast(Iterator[Any], stepper.create_iterator(model_input, coords))


def _variable_indices(coords: Mapping[str, Any], variables: Sequence[str]) -> list[int]:
    names = [str(name) for name in coords["variable"]]
    return [names.index(name) for name in variables]


def _as_model_input(model: Any, state: Floats) -> Any:
    """Return a copy of a state on the model's device; the model overwrites its input."""
    if getattr(model, "numpy_native", False):
        return np.array(state)
    import torch

    parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
    device = parameter.device if parameter is not None else "cpu"
    return torch.from_numpy(np.array(state)).to(device)


def check_coordinates(model: Any, grid: Grid, input_variables: tuple[str, ...]) -> None:
    """Check that a model has the variables and the grid that plans use.

    Raises
    ------
    ModelUnavailable
        Naming what differs.
    """
    coords: Mapping[str, Any] = model.input_coords()
    names = tuple(str(name) for name in coords["variable"])
    if names != input_variables:
        difference = sorted(set(names) ^ set(input_variables))[:5] or "in another order"
        raise ModelUnavailable(Stage.INFERENCE, f"the model's variables differ: {difference}")
    expected = grid.latitudes(), grid.longitudes()
    _check_grid("model", coords, expected, "configured in models.fcn3.grid")


def check_interpolation(model: Any, grid: Grid) -> None:
    """Check that an interpolation steps by hours, on the grid of FCN3.

    Raises
    ------
    ModelUnavailable
        Naming what differs.
    """
    coords: Mapping[str, Any] = model.output_coords(model.input_coords())
    step = np.asarray(coords["lead_time"])[-1].astype("timedelta64[m]")
    if step != np.timedelta64(60, "m"):
        raise ModelUnavailable(
            Stage.INFERENCE, f"the interpolation has steps of {step}; hours are needed"
        )
    _check_grid("interpolation", coords, interpolation_coordinates(grid), "needed")


def _check_grid(
    owner: str, coords: Mapping[str, Any], lat_lon: Sequence[NDArray[np.float64]], origin: str
) -> None:
    for name, expected in zip(("lat", "lon"), lat_lon, strict=True):
        found = coords[name]
        if found.shape != expected.shape or not np.allclose(found, expected):
            raise ModelUnavailable(
                Stage.INFERENCE,
                f"the {owner} has {_describe(name, found)}; {origin} are "
                f"{_describe(name, expected)}",
            )


def _describe(name: str, coordinate: NDArray[Any]) -> str:
    return f"{coordinate.size} values of {name} from {coordinate[0]:g} to {coordinate[-1]:g}"


def interpolation_coordinates(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return latitudes and longitudes of the interpolation: FCN3's, without the south pole."""
    return grid.latitudes()[:-1], grid.longitudes()
