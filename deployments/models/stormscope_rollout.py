"""The steps of StormScope for one ensemble member, conditioned on fields of another forecast."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deployments.initial_conditions.client import Analysis, open_analysis
from deployments.models.fcn3_rollout import hourly_points
from deployments.models.messages import NowcastJob
from workflows.base import Conditioning, Plan
from workflows.errors import ModelUnavailable, StageFailed
from workflows.execution import Stage
from workflows.grids import Grid, LambertGrid
from workflows.stormscope import CONDITIONING_VARIABLE

logger = logging.getLogger("ray.serve")

Floats = NDArray[np.float32]

POSITION_TOLERANCE = 1e-3
"""Degrees by which a model's points may differ from those that results are labelled with."""


@dataclass
class Nowcaster:
    """A model, and the grids that it has learnt to regrid from.

    Parameters
    ----------
    model : StormScopeGOES
        Or what has its interface.
    """

    model: Any
    regrids_from: str | None = None
    """Digest of the coordinates of the last source; None before the first."""


def prepare(
    model: Any, grid: LambertGrid, conditioning_grid: Grid, variables: tuple[str, ...]
) -> Nowcaster:
    """Check that a model is the one that plans are made for, and teach it the global grid.

    Raises
    ------
    ModelUnavailable
        Naming what differs.
    """
    given: Mapping[str, Any] = model.input_coords()
    names = tuple(str(name) for name in given["variable"])
    _refuse(names != variables, f"the model's channels are {', '.join(names)}")
    conditions = ", ".join(map(str, model.conditioning_variables))
    _refuse(
        conditions != CONDITIONING_VARIABLE,
        f"the model is conditioned on {conditions}; {CONDITIONING_VARIABLE} is needed",
    )
    hour = np.timedelta64(60, "m")
    images = np.asarray(given["lead_time"])
    _refuse(
        images.size != 1,
        f"the model starts from {images.size} images; one that starts from a single image is "
        "needed",
    )
    step = np.asarray(model.output_times)[-1].astype("timedelta64[m]")
    _refuse(step != hour, f"the model has steps of {step}; hours are needed")
    for name, wanted in (("y", grid.y()), ("x", grid.x())):
        found = np.asarray(given[name], np.float64)
        _refuse(
            found.shape != wanted.shape or not np.allclose(found, wanted, rtol=0, atol=1.0),
            f"the model has {found.size} values of {name} from {found[0]:.0f} to {found[-1]:.0f} "
            f"m; configured in models.stormscope.grid are {wanted.size} from {wanted[0]:.0f} to "
            f"{wanted[-1]:.0f} m",
        )
    latitudes, longitudes = _host(model.latitudes), _host(model.longitudes)
    apart = np.maximum(
        np.abs(latitudes - grid.latitudes()),
        np.abs((longitudes - grid.longitudes() + 180.0) % 360.0 - 180.0),
    ).max()
    _refuse(
        not apart <= POSITION_TOLERANCE,
        f"the model's points lie up to {apart:.2g} degrees from those of models.stormscope.grid",
    )
    model.build_conditioning_interpolator(*hourly_points(conditioning_grid))
    return Nowcaster(model)


def _refuse(wrong: bool, reason: str) -> None:
    if wrong:
        raise ModelUnavailable(Stage.INFERENCE, reason)


def nowcast(
    nowcaster: Nowcaster,
    job: NowcastJob,
    conditioning: Callable[[int], Floats],
    analysis: Analysis | None = None,
) -> Generator[Floats]:
    """Run a model over one member.

    Parameters
    ----------
    conditioning : callable
        Gives the field, shape (lat, lon), that conditions a step.
    analysis : Analysis, optional
        The satellite's image; read from the job's path by default.

    Yields
    ------
    ndarray, shape (variable, y, x)
        The plan's variables at each time, the satellite's image first. NaN where the satellite
        does not see. A copy.

    Raises
    ------
    StageFailed
        If the image has no value where the model needs one.
    """
    plan, model = job.plan, nowcaster.model
    library = _library(model)
    if analysis is None:
        analysis = open_analysis(Path(job.initial_conditions))
    state, coords = _initial_state(nowcaster, plan, analysis)
    chosen = [plan.input_variables.index(name) for name in plan.variables]
    yield _host(state)[0, 0, 0, chosen]
    drawing = _own_random_numbers(model, plan.seeds[job.member])
    for step in range(plan.n_steps):
        field, field_coords = _conditioning_input(library, model, plan, coords, conditioning(step))
        # Given by hand at each call: a source that is set on the model is everybody's.
        with drawing():
            predicted, predicted_coords = model.call_with_conditioning(
                state, coords, field, field_coords
            )
        yield _host(predicted)[0, 0, 0, chosen]
        state, coords = model.next_input(predicted, predicted_coords, state, coords)


def _initial_state(nowcaster: Nowcaster, plan: Plan, analysis: Analysis) -> tuple[Any, Any]:
    """Bring the satellite's image to the model's grid, NaN where the satellite does not see."""
    model = nowcaster.model
    library = _library(model)
    image = np.array(analysis.fields)[None, None, None]
    latitudes, longitudes = cast(NDArray[np.float64], analysis.points)
    y, x = _learn_grid(nowcaster, latitudes, longitudes)
    coords = OrderedDict(
        batch=np.arange(1),
        time=np.array([plan.start()]).astype("datetime64[ns]"),
        lead_time=np.asarray(model.input_coords()["lead_time"]),
        variable=np.array(plan.input_variables),
        y=y,
        x=x,
    )
    state, coords = model.prep_input(_on_device(library, model, image), coords)
    _check_image(plan, _host(state)[0, 0, 0], _host(model.valid_mask))
    return library.where(model.valid_mask, state, library.nan), coords


def _learn_grid(
    nowcaster: Nowcaster, latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]
) -> tuple[Any, Any]:
    """Give an image's y and x; a grid that is not the model's own is learnt, once."""
    model = nowcaster.model
    own = _host(model.latitudes), _host(model.longitudes) % 360.0
    if latitudes.shape == own[0].shape and all(
        np.allclose(one, other, rtol=0, atol=POSITION_TOLERANCE)
        for one, other in zip((latitudes, longitudes % 360.0), own, strict=True)
    ):
        return model.y, model.x
    digest = hashlib.sha256(latitudes.tobytes() + longitudes.tobytes()).hexdigest()
    if nowcaster.regrids_from != digest:
        model.build_input_interpolator(latitudes, longitudes)
        nowcaster.regrids_from = digest
    return np.arange(latitudes.shape[0]), np.arange(latitudes.shape[1])


def _check_image(plan: Plan, image: Floats, seen: NDArray[np.bool_]) -> None:
    """Refuse an image with gaps where the satellite sees: one gap would spread over all."""
    bad = [
        f"{name} at {count}"
        for name, field in zip(plan.input_variables, image, strict=True)
        if (count := int((~np.isfinite(field) & seen).sum()))
    ]
    if bad:
        raise StageFailed(
            Stage.INITIAL_CONDITIONS,
            f"{plan.data_source} has gaps at {plan.start()}: {', '.join(bad[:5])} of "
            f"{int(seen.sum())} points that the model needs",
        )


def _conditioning_input(
    library: Any, model: Any, plan: Plan, coords: Mapping[str, Any], field: Floats
) -> tuple[Any, Any]:
    conditions = cast(Conditioning, plan.conditioning)
    latitudes, longitudes = hourly_points(conditions.grid)
    return _on_device(library, model, field[None, None, None, None]), OrderedDict(
        batch=coords["batch"],
        time=coords["time"],
        lead_time=coords["lead_time"],
        variable=np.array([conditions.variable]),
        lat=latitudes,
        lon=longitudes,
    )


def _library(model: Any) -> Any:
    """Give what computes with the model's arrays: numpy or torch."""
    if getattr(model, "numpy_native", False):
        return np
    import torch

    return torch


def _on_device(library: Any, model: Any, array: Floats) -> Any:
    if library is np:
        return array
    return library.from_numpy(np.ascontiguousarray(array)).to(model.latitudes.device)


def _host(array: Any) -> NDArray[Any]:
    """Copy an array into memory of the host."""
    if isinstance(array, np.ndarray):
        return array.copy()
    host: NDArray[Any] = array.detach().cpu().numpy().copy()
    return host


def _own_random_numbers(model: Any, seed: int) -> Callable[[], AbstractContextManager[None]]:
    """Give a context in which a model draws from a sequence of its own, that goes on each time.

    StormScope draws from torch's global generators, which anything in the process may use between
    two steps.
    """
    if getattr(model, "numpy_native", False):
        model.set_rng(seed)
        return nullcontext
    import torch

    devices = [model.latitudes.device] if model.latitudes.is_cuda else []
    states: list[Any] = []

    @contextmanager
    def drawing() -> Iterator[None]:
        with torch.random.fork_rng(devices):
            if states:
                torch.set_rng_state(states[0])
                for device, state in zip(devices, states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            else:
                torch.manual_seed(seed)
            yield
            states[:] = [
                torch.get_rng_state(),
                *(torch.cuda.get_rng_state(device) for device in devices),
            ]

    return drawing
