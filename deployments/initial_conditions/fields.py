"""Convert what a data source returns to the fields that a model needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.base import Conditioning, Plan
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.grids import Grid

Floats = NDArray[np.float32]

COORDINATE_TOLERANCE = 1e-4
"""Allowed difference of a source's grid, degrees: its coordinates may be float32."""


def select_variables(plan: Plan | Conditioning, source_fields: Any) -> Any:
    """Return the fields of the start time, in the order of the plan's variables.

    Parameters
    ----------
    source_fields : DataArray
        With dimension ``variable``, and ``time`` and ``lead_time`` of any size.

    Raises
    ------
    StageFailed
        If a variable is missing.
    """
    for dim in ("lead_time", "time"):
        if dim in source_fields.dims:
            source_fields = source_fields.isel({dim: 0})
    fields = source_fields.transpose("variable", ...)
    names = [str(name) for name in fields["variable"].values]
    missing = [name for name in plan.input_variables if name not in names]
    if missing:
        raise _failed(f"{plan.data_source} returned no {_some(missing)} at {plan.start()}")
    if names != list(plan.input_variables):
        fields = fields.sel(variable=list(plan.input_variables))
    return fields


def on_model_grid(plan: Plan | Conditioning, grid: Grid, fields: Any) -> Floats:
    """Return fields of shape (variable, lat, lon).

    Raises StageFailed if the fields are on another grid, or have missing values.
    """
    fields = fields.transpose("variable", "lat", "lon")
    for name, expected in (("lat", grid.latitudes()), ("lon", grid.longitudes())):
        found = np.asarray(fields[name], dtype=np.float64)
        if found.shape != expected.shape or np.abs(found - expected).max() > COORDINATE_TOLERANCE:
            raise _failed(
                f"{plan.data_source} has {found.size} values of {name} from {found[0]:g} to "
                f"{found[-1]:g}, the model needs {expected.size} from {expected[0]:g} to "
                f"{expected[-1]:g}"
            )
    values = np.ascontiguousarray(fields.values, dtype=np.float32)
    incomplete = [
        name
        for name, field in zip(plan.input_variables, values, strict=True)
        if not np.isfinite(field).all()
    ]
    if incomplete:
        raise _failed(
            f"{plan.data_source} has missing values in {_some(incomplete)} at {plan.start()}"
        )
    return values


def on_source_grid(plan: Plan | Conditioning, fields: Any) -> tuple[Floats, NDArray[np.float64]]:
    """Return fields and the coordinates of their points, for a model that regrids them.

    Missing values are common at the edge of a satellite's view. Only the model knows whether it
    needs those points.

    Returns
    -------
    fields : ndarray, shape (variable, y, x)
    points : ndarray, shape (2, y, x)
        Latitudes and longitudes.

    Raises
    ------
    StageFailed
        If there are no coordinates, or a variable has no value at all.
    """
    coordinates = []
    for name in ("lat", "lon"):
        # GOES has two-dimensional coordinates under the names with an underscore.
        coordinate = next((fields[n] for n in (f"_{name}", name) if n in fields.coords), None)
        if coordinate is None or not np.isfinite(coordinate).any():
            raise _failed(f"{plan.data_source} has no coordinates of its points")
        coordinates.append(coordinate)
    points = [np.asarray(coordinate, np.float64) for coordinate in coordinates]
    dims = coordinates[0].dims
    if len(dims) == 1:
        dims = (*dims, *coordinates[1].dims)
        points = list(np.meshgrid(*points, indexing="ij"))
    values = np.ascontiguousarray(fields.transpose("variable", *dims).values, dtype=np.float32)
    if points[0].shape != values.shape[1:] or points[1].shape != values.shape[1:]:
        raise _failed(
            f"{plan.data_source} has fields of shape {values.shape[1:]} but coordinates of shapes "
            f"{points[0].shape} and {points[1].shape}"
        )
    empty = [
        name
        for name, field in zip(plan.input_variables, values, strict=True)
        if not np.isfinite(field).any()
    ]
    if empty:
        raise _failed(f"{plan.data_source} has no value in {_some(empty)} at {plan.start()}")
    return values, np.stack(points)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5])


def _failed(reason: str) -> StageFailed:
    return StageFailed(Stage.INITIAL_CONDITIONS, reason)
