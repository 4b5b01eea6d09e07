"""The time steps of StormScope for one member, conditioned on the fields of another forecast."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deployments.initial_conditions.client import Analysis
from deployments.models.buffer_pool import Floats
from deployments.models.fcn3_rollout import interpolation_coordinates
from deployments.models.messages import NowcastJob
from deployments.models.random_numbers import RandomNumbers
from workflows.base import Conditioning, Plan
from workflows.errors import ModelUnavailable, StageFailed
from workflows.execution import Stage
from workflows.grids import Grid, LambertGrid
from workflows.stormscope import CONDITIONING_VARIABLE

POSITION_TOLERANCE = 1e-3
"""Degrees by which a model's points may differ from the coordinates of results."""


@dataclass
class Nowcaster:
    """A StormScopeGOES, or a model with its interface, and the grid of its input interpolator."""

    model: Any
    input_grid: str | None = None
    """Digest of the coordinates of the latest image on another grid; None before the first."""


def prepare(
    model: Any, grid: LambertGrid, conditioning_grid: Grid, variables: tuple[str, ...]
) -> Nowcaster:
    """Check that a model fits the plans, and build its interpolator for conditioning fields.

    Raises
    ------
    ModelUnavailable
        Naming what differs.
    """
    coords: Mapping[str, Any] = model.input_coords()
    names = tuple(str(name) for name in coords["variable"])
    _refuse_if(names != variables, f"the model's channels are {', '.join(names)}")
    conditioning = ", ".join(map(str, model.conditioning_variables))
    _refuse_if(
        conditioning != CONDITIONING_VARIABLE,
        f"the model is conditioned on {conditioning}; {CONDITIONING_VARIABLE} is needed",
    )
    n_images = np.asarray(coords["lead_time"]).size
    _refuse_if(
        n_images != 1,
        f"the model starts from {n_images} images; one that starts from a single image is needed",
    )
    step = np.asarray(model.output_times)[-1].astype("timedelta64[m]")
    _refuse_if(step != np.timedelta64(60, "m"), f"the model has steps of {step}; hours are needed")
    for name, expected in (("y", grid.y()), ("x", grid.x())):
        found = np.asarray(coords[name], np.float64)
        _refuse_if(
            found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=1.0),
            f"the model has {_describe(name, found)}; configured in models.stormscope.grid are "
            f"{_describe(name, expected)}",
        )
    latitudes, longitudes = _to_host(model.latitudes), _to_host(model.longitudes)
    distance = np.maximum(
        np.abs(latitudes - grid.latitudes()),
        np.abs((longitudes - grid.longitudes() + 180.0) % 360.0 - 180.0),
    ).max()
    # Also refuses NaN.
    _refuse_if(
        not distance <= POSITION_TOLERANCE,
        f"the model's points lie up to {distance:.2g} degrees from those of models.stormscope.grid",
    )
    model.build_conditioning_interpolator(*interpolation_coordinates(conditioning_grid))
    return Nowcaster(model)


def _refuse_if(differs: bool, reason: str) -> None:
    if differs:
        raise ModelUnavailable(Stage.INFERENCE, reason)


def _describe(name: str, coordinate: NDArray[np.float64]) -> str:
    return f"{coordinate.size} values of {name} from {coordinate[0]:.0f} to {coordinate[-1]:.0f} m"


def nowcast(
    nowcaster: Nowcaster, job: NowcastJob, image: Analysis, conditioning: Callable[[int], Floats]
) -> Generator[Floats]:
    """Roll out one member.

    Parameters
    ----------
    conditioning : callable
        Returns the field that conditions a step, shape (lat, lon).

    Yields
    ------
    ndarray, shape (variable, y, x)
        The plan's variables at each time, from the satellite image; NaN outside of the
        satellite's view. A copy.

    Raises
    ------
    StageFailed
        If the image has no value at a point that the model needs.
    """
    plan, model = job.plan, nowcaster.model
    xp = _array_module(model)
    state, coords = _initial_state(nowcaster, plan, image)
    indices = [plan.input_variables.index(name) for name in plan.variables]
    yield _to_host(state)[0, 0, 0, indices]
    numbers = _random_numbers(model, plan.seeds[job.member])
    for step in range(plan.n_steps):
        field, field_coords = _conditioning_input(xp, model, plan, coords, conditioning(step))
        # The field is an argument: a data source set on the model is shared by all members.
        with numbers.own():
            predicted, predicted_coords = model.call_with_conditioning(
                state, coords, field, field_coords
            )
        yield _to_host(predicted)[0, 0, 0, indices]
        state, coords = model.next_input(predicted, predicted_coords, state, coords)


def _initial_state(nowcaster: Nowcaster, plan: Plan, image: Analysis) -> tuple[Any, Any]:
    """Return the image on the model's grid with its coordinates; NaN outside of the view."""
    model = nowcaster.model
    xp = _array_module(model)
    fields = np.array(image.fields)[None, None, None]
    latitudes, longitudes = cast(NDArray[np.float64], image.points)
    y, x = _input_coordinates(nowcaster, latitudes, longitudes)
    coords = OrderedDict(
        batch=np.arange(1),
        time=np.array([plan.start()]).astype("datetime64[ns]"),
        lead_time=np.asarray(model.input_coords()["lead_time"]),
        variable=np.array(plan.input_variables),
        y=y,
        x=x,
    )
    state, coords = model.prep_input(_on_device(xp, model, fields), coords)
    _check_image(plan, _to_host(state)[0, 0, 0], _to_host(model.valid_mask))
    return xp.where(model.valid_mask, state, xp.nan), coords


def _input_coordinates(
    nowcaster: Nowcaster, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]
) -> tuple[Any, Any]:
    """Return y and x of an image; builds an interpolator if it is not on the model's grid."""
    model = nowcaster.model
    model_points = _to_host(model.latitudes), _to_host(model.longitudes) % 360.0
    if latitudes.shape == model_points[0].shape and all(
        np.allclose(degrees, own, rtol=0, atol=POSITION_TOLERANCE)
        for degrees, own in zip((latitudes, longitudes % 360.0), model_points, strict=True)
    ):
        return model.y, model.x
    digest = hashlib.sha256(latitudes.tobytes() + longitudes.tobytes()).hexdigest()
    if nowcaster.input_grid != digest:
        model.build_input_interpolator(latitudes, longitudes)
        nowcaster.input_grid = digest
    return np.arange(latitudes.shape[0]), np.arange(latitudes.shape[1])


def _check_image(plan: Plan, image: Floats, in_view: NDArray[np.bool_]) -> None:
    """Refuse an image with gaps inside the view: a single gap would spread over the whole map."""
    gaps = [
        f"{name} at {count}"
        for name, field in zip(plan.input_variables, image, strict=True)
        if (count := int((~np.isfinite(field) & in_view).sum()))
    ]
    if gaps:
        raise StageFailed(
            Stage.INITIAL_CONDITIONS,
            f"{plan.data_source} has gaps at {plan.start()}: {', '.join(gaps[:5])} of "
            f"{int(in_view.sum())} points that the model needs",
        )


def _conditioning_input(
    xp: Any, model: Any, plan: Plan, coords: Mapping[str, Any], field: Floats
) -> tuple[Any, Any]:
    conditioning = cast(Conditioning, plan.conditioning)
    latitudes, longitudes = interpolation_coordinates(conditioning.grid)
    return _on_device(xp, model, field[None, None, None, None]), OrderedDict(
        batch=coords["batch"],
        time=coords["time"],
        lead_time=coords["lead_time"],
        variable=np.array([conditioning.variable]),
        lat=latitudes,
        lon=longitudes,
    )


def _array_module(model: Any) -> Any:
    """Return the library of the model's arrays: numpy or torch."""
    if getattr(model, "numpy_native", False):
        return np
    import torch

    return torch


def _on_device(xp: Any, model: Any, array: Floats) -> Any:
    if xp is np:
        return array
    return xp.from_numpy(np.ascontiguousarray(array)).to(model.latitudes.device)


def _to_host(array: Any) -> NDArray[Any]:
    """Return a copy of an array in the host's memory."""
    if isinstance(array, np.ndarray):
        return array.copy()
    host: NDArray[Any] = array.detach().cpu().numpy().copy()
    return host


def _random_numbers(model: Any, seed: int) -> RandomNumbers:
    """Return the random numbers of a member; StormScope draws from torch's global generators."""
    if getattr(model, "numpy_native", False):
        model.set_rng(seed)
        return RandomNumbers(seed, uses_torch=False)
    return RandomNumbers(seed, devices=[model.latitudes.device] if model.latitudes.is_cuda else [])
