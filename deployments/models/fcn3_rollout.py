"""The fields that condition a nowcast: steps of FCN3, interpolated to hours."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deployments.models.buffer_pool import BufferPool, Floats
from deployments.models.messages import ConditioningJob
from workflows.base import Conditioning
from workflows.errors import ModelUnavailable
from workflows.execution import Stage
from workflows.grids import Grid


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
    model: Any, interpolation: Any, plan: Conditioning, seed: int, state: Floats
) -> Iterator[Any]:
    coords = OrderedDict(
        time=np.array([plan.start()]).astype("datetime64[ns]"),
        lead_time=np.array([np.timedelta64(0, "h")]),
        variable=np.array(plan.input_variables),
        lat=plan.grid.latitudes(),
        lon=plan.grid.longitudes(),
    )
    # The iterator reads the seed at its first step: create no other iterator until then.
    model.set_rng(seed=seed, reset=True)
    model_input = _as_model_input(model, state[None, None])
    return cast(Iterator[Any], interpolation.create_iterator(model_input, coords))


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
