"""Convert what a data source returns to the fields that a model needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.base import Conditioning, Plan
from workflows.errors import StageFailed
from workflows.execution import Stage
from workflows.grids import AnyGrid, LambertGrid, RegularGrid

Floats = NDArray[np.float32]

COORDINATE_TOLERANCE = 1e-4
"""Allowed difference of a source's grid, degrees: its coordinates may be float32."""
MAP_TOLERANCE = 1e-3
"""The same for two-dimensional coordinates; a tenth of a kilometre."""


def select_variables(plan: Plan | Conditioning, source_fields: Any, time: np.datetime64) -> Any:
    """Return the fields of one time, in the order of the plan's variables.

    Parameters
    ----------
    source_fields : DataArray
        With dimension ``variable``, and ``time`` and ``lead_time`` of any size.

    Raises
    ------
    StageFailed
        If a variable or the time is missing.
    """
    if "lead_time" in source_fields.dims:
        source_fields = source_fields.isel(lead_time=0)
    if "time" in source_fields.dims:
        source_fields = source_fields.isel(time=_index_of(plan, source_fields, time))
    fields = source_fields.transpose("variable", ...)
    names = [str(name) for name in fields["variable"].values]
    missing = [name for name in plan.input_variables if name not in names]
    if missing:
        raise _failed(f"{plan.data_source} returned no {_some(missing)} at {time}")
    if names != list(plan.input_variables):
        fields = fields.sel(variable=list(plan.input_variables))
    return fields


def _index_of(plan: Plan | Conditioning, fields: Any, time: np.datetime64) -> int:
    if fields.sizes["time"] == 1 and len(getattr(plan, "history_hours", (0,))) == 1:
        return 0
    found = np.flatnonzero(fields["time"].values.astype("datetime64[s]") == time)
    if not found.size:
        raise _failed(f"{plan.data_source} returned no fields at {time}")
    return int(found[0])


def on_model_grid(plan: Plan | Conditioning, grid: AnyGrid, fields: Any) -> Floats:
    """Return fields of shape (variable, lat, lon) or (variable, y, x) on the grid of a model.

    A source that has the model's points is not interpolated; one that has others is, linearly, by
    Earth2Studio.

    Raises
    ------
    StageFailed
        If the fields do not cover the grid, or have missing values.
    """
    if isinstance(grid, RegularGrid):
        selected = _same_points(grid, fields)
    else:
        selected = _same_map(grid, fields)
    values = _interpolated(grid, fields) if selected is None else selected.values
    if values.shape[1:] != grid.shape:
        raise _failed(
            f"{plan.data_source} has fields of shape {values.shape[1:]}, not {grid.shape}"
        )
    values = np.ascontiguousarray(values, dtype=np.float32)
    incomplete = [
        name
        for name, field in zip(plan.input_variables, values, strict=True)
        if not np.isfinite(field).all()
    ]
    if incomplete:
        raise _failed(
            f"{plan.data_source} has missing values in {_some(incomplete)} at {plan.start()} on "
            "the grid of the model"
        )
    return values


def _same_points(grid: RegularGrid, fields: Any) -> Any | None:
    """Return the fields at a grid's points; None if the source does not have all of them."""
    if not {"lat", "lon"} <= set(fields.dims):
        return None
    indices = {}
    for name, wanted in (("lat", grid.latitudes()), ("lon", grid.longitudes() % 360.0)):
        found = np.asarray(fields[name], dtype=np.float64)
        if name == "lon":
            # A point just west of 360 degrees may be meant for 0.
            found = (found + COORDINATE_TOLERANCE) % 360.0 - COORDINATE_TOLERANCE
        order = np.argsort(found)
        places = np.searchsorted(found[order], wanted - COORDINATE_TOLERANCE)
        nearest = order[np.minimum(places, found.size - 1)]
        # Also true of NaN.
        if not np.abs(found[nearest] - wanted).max() <= COORDINATE_TOLERANCE:
            return None
        indices[name] = nearest
    fields = fields.transpose("variable", "lat", "lon")
    unchanged = all(np.array_equal(i, np.arange(fields.sizes[n])) for n, i in indices.items())
    return fields if unchanged else fields.isel(indices)


def _same_map(grid: LambertGrid, fields: Any) -> Any | None:
    """Return the fields if they are at a grid's points; None otherwise."""
    points = _points_of(fields)
    if points is None or points[0].shape != grid.shape:
        return None
    latitudes, longitudes = points
    east = (longitudes.values - grid.longitudes() + 180.0) % 360.0 - 180.0
    distance = np.maximum(np.abs(latitudes.values - grid.latitudes()), np.abs(east)).max()
    # Also true of NaN.
    if not distance <= MAP_TOLERANCE:
        return None
    return fields.transpose("variable", *latitudes.dims)


def _points_of(fields: Any) -> tuple[Any, Any] | None:
    """Return two-dimensional latitudes and longitudes of fields; None if they are not."""
    for names in (("_lat", "_lon"), ("lat", "lon")):
        if all(name in fields.coords and fields[name].ndim == 2 for name in names):
            return fields[names[0]], fields[names[1]]
    return None


def _interpolated(grid: AnyGrid, fields: Any) -> Any:
    from earth2studio.data import prep_data_array

    latitudes, longitudes = grid.latitudes(), grid.longitudes()
    points = _points_of(fields)
    if points is not None:
        dims = points[0].dims
        fields = fields.transpose("variable", *dims).assign_coords(
            _lat=(dims, points[0].values), _lon=(dims, points[1].values % 360.0)
        )
        longitudes = longitudes % 360.0
    else:
        fields, west = _continued(fields.transpose("variable", "lat", "lon"))
        longitudes = west + (longitudes - west) % 360.0
    values, _ = prep_data_array(
        fields, interp_to={"_lat": latitudes, "_lon": longitudes}, interp_method="linear"
    )
    return values.numpy()


def _continued(fields: Any) -> tuple[Any, float]:
    """Return fields with ascending longitudes, and the first of these.

    Global fields are continued by a column at each end, so that they can be interpolated
    everywhere.
    """
    import xarray as xr

    fields = fields.assign_coords(lon=fields["lon"] % 360.0).sortby("lon")
    longitudes = fields["lon"].values
    gaps = np.diff(longitudes, append=longitudes[0] + 360.0)
    widest = int(np.argmax(gaps))
    if gaps[widest] > 1.5 * np.median(gaps):
        # Regional: it begins behind the widest gap, wherever that is.
        west = float(longitudes[(widest + 1) % longitudes.size])
        fields = fields.assign_coords(lon=west + (fields["lon"] - west) % 360.0).sortby("lon")
        return fields, west
    first, last = fields.isel(lon=[0]), fields.isel(lon=[-1])
    ends = [
        last.assign_coords(lon=last["lon"] - 360.0),
        fields,
        first.assign_coords(lon=first["lon"] + 360.0),
    ]
    return xr.concat(ends, "lon"), 0.0


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
