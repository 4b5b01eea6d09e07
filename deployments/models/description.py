"""Describe a loaded model, from its coordinates in Earth2Studio's interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.models.known_models import is_stochastic
from workflows.base import Plan
from workflows.errors import ModelUnavailable, StageFailed
from workflows.execution import Stage
from workflows.grid_points import grid_through
from workflows.grids import AnyGrid
from workflows.model_description import ModelDescription

NOT_SPATIAL = ("batch", "time", "lead_time", "variable")


def describe_model(
    model: Any,
    diagnostics: Mapping[str, Sequence[Any]] | None = None,
    stochastic: bool | None = None,
) -> ModelDescription:
    """Return the description of a prognostic model.

    Parameters
    ----------
    model : PrognosticModel
    diagnostics : mapping of str to sequence of DiagnosticModel, optional
        Diagnostics of each workflow, applied to every step of the model.
    stochastic : bool, optional
        Whether the model draws random numbers of its own; by default as far as that is known.

    Raises
    ------
    ModelUnavailable
        If forecasts by this model cannot be stored, or a diagnostic needs what it does not have.
    """
    inputs = model.input_coords()
    outputs = model.output_coords(inputs)
    history = tuple(_whole_hours(hours, "history") for hours in np.atleast_1d(inputs["lead_time"]))
    if history[-1] != 0 or sorted(set(history)) != list(history):
        raise _unusable(f"its input has lead times of {history} h; the last must be 0")
    leads = [_whole_hours(hours, "step") for hours in np.atleast_1d(outputs["lead_time"])]
    steps = set(np.diff([0, *leads]).tolist())
    if len(steps) != 1 or min(steps) < 1:
        raise _unusable(f"its output has lead times of {leads} h; they must be evenly spaced")
    output_variables = _names(outputs)
    grid = _grid(model, outputs, "output")
    return ModelDescription(
        input_variables=_names(inputs),
        output_variables=output_variables,
        history_hours=history,
        step_hours=steps.pop(),
        steps_per_call=len(leads),
        input_grid=_grid(model, inputs, "input"),
        grid=grid,
        is_stochastic=is_stochastic(model) if stochastic is None else stochastic,
        diagnostics={
            workflow: _diagnosed(output_variables, grid, each)
            for workflow, each in (diagnostics or {}).items()
        },
    )


def check_plan(plan: Plan, model: ModelDescription) -> None:
    """Check that a plan was made for a model: another may have been configured since.

    Raises
    ------
    StageFailed
        Naming what differs.
    """
    differing = [
        name
        for name, planned, own in (
            ("input variables", plan.input_variables, model.input_variables),
            ("history", plan.history_hours, model.history_hours),
            ("step", plan.step_hours, model.step_hours),
            ("grid", plan.grid, model.grid),
            ("input grid", plan.input_grid or plan.grid, model.input_grid),
        )
        if planned != own
    ]
    available = model.variables(plan.workflow)
    missing = [name for name in plan.variables if name not in available]
    if differing or missing:
        reasons = [*differing, *(f"{name}, which it no longer has" for name in missing)]
        raise StageFailed(
            Stage.INFERENCE,
            f"another model {plan.model} is configured now than when this was requested: it "
            f"differs in {', '.join(reasons)}; submit the request again",
        )


def _diagnosed(
    variables: Sequence[str], grid: AnyGrid, diagnostics: Sequence[Any]
) -> tuple[str, ...]:
    """Return the variables that diagnostics add to those of a model."""
    added: list[str] = []
    for diagnostic in diagnostics:
        name = type(diagnostic).__name__
        inputs = diagnostic.input_coords()
        if missing := [each for each in _names(inputs) if each not in variables]:
            raise _unusable(f"diagnostic {name} needs {', '.join(missing)}, which it does not have")
        outputs = diagnostic.output_coords(inputs)
        if {"lat", "lon"} <= outputs.keys() and _has_values(outputs["lat"]):
            own = _grid(diagnostic, outputs, f"{name}'s output")
            if own != grid:
                raise _unusable(f"diagnostic {name} is on another grid")
        added += _names(outputs)
    repeated = {each for each in added if added.count(each) > 1 or each in variables}
    if repeated:
        raise _unusable(f"its diagnostics repeat {', '.join(sorted(repeated))}")
    return tuple(added)


def spatial_coordinates(coords: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the spatial dimensions of a coordinate system with their values, in order."""
    return {name: np.asarray(values) for name, values in coords.items() if name not in NOT_SPATIAL}


def points_of(
    model: Any, coords: Mapping[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return latitudes and longitudes of a coordinate system, shapes (lat,), (lon,) or (y, x)."""
    for owner in (coords, vars(model) if hasattr(model, "__dict__") else {}):
        for names in (("lat", "lon"), ("_lat", "_lon"), ("latitudes", "longitudes")):
            found = [_values(owner[name]) for name in names if name in owner]
            if len(found) == 2 and all(_has_values(each) for each in found):
                return found[0], found[1]
    raise _unusable(f"it has no latitudes and longitudes, only {', '.join(map(str, coords))}")


def _values(array: Any) -> NDArray[np.float64]:
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array, dtype=np.float64)


def _has_values(array: Any) -> bool:
    return np.asarray(array).size > 0


def _grid(model: Any, coords: Mapping[str, Any], which: str) -> AnyGrid:
    try:
        return grid_through(*points_of(model, coords))
    except ValueError as error:
        raise _unusable(f"the grid of its {which} cannot be stored: {error}") from None


def _names(coords: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in np.atleast_1d(coords["variable"]))


def _whole_hours(duration: Any, what: str) -> int:
    minutes = int(np.asarray(duration).astype("timedelta64[m]").astype(int))
    if minutes % 60:
        raise _unusable(f"its {what} of {minutes} minutes is not a number of whole hours")
    return minutes // 60


def _unusable(reason: str) -> ModelUnavailable:
    return ModelUnavailable(Stage.INFERENCE, f"the model cannot be served: {reason}")
