"""Coordinates of a result, with their CF attributes: members, times and the map.

References
----------
CF Conventions 1.8, https://cfconventions.org, Appendix F for the grid mappings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.base import Plan
from workflows.crs import well_known_text
from workflows.grids import AnyGrid, Grid, LambertGrid, LatLonGrid, RegularGrid

CRS = "crs"


@dataclass(frozen=True)
class Variable:
    """One array of the dataset."""

    name: str
    dims: tuple[str, ...]
    attributes: Mapping[str, str | float]
    values: NDArray[Any] | None = None
    """None for a field that the model computes (float32, NaN until written)."""


def ensemble_coordinates(plan: Plan) -> tuple[Variable, ...]:
    """Return the ensemble dimension and the seeds of its members."""
    number = Variable(
        "ensemble",
        ("ensemble",),
        {"standard_name": "realization", "long_name": "Ensemble member", "units": "1"},
        np.arange(len(plan.seeds), dtype="<i4"),
    )
    if plan.conditioning is None:
        return number, _seeds("seed", "Seed of the member's random numbers", plan.seeds)
    conditioning = [plan.conditioning.seeds[plan.conditioned_by(m)] for m in plan.members]
    return (
        number,
        _seeds(
            f"seed_{plan.conditioning.model}",
            f"Seed of the member of {plan.conditioning.model} that conditions this one",
            conditioning,
        ),
        _seeds(
            f"seed_{plan.model}", f"Seed of the member's random numbers in {plan.model}", plan.seeds
        ),
    )


def _seeds(name: str, long_name: str, seeds: Sequence[int]) -> Variable:
    # CF 1.8 has no unsigned 32-bit integers; float64 is exact up to 2**53.
    attributes = {"long_name": long_name, "units": "1"}
    return Variable(name, ("ensemble",), attributes, np.array(seeds, dtype="<f8"))


def time_coordinates(plan: Plan) -> tuple[Variable, ...]:
    """Return the times of a result, and the lead times if they are a separate dimension."""
    units = f"hours since {str(plan.start()).replace('T', ' ')}"
    hours = (plan.lead_times() / np.timedelta64(1, "h")).astype("<i4")
    if plan.time_layout == "lead_time":
        return (
            Variable(
                "time",
                ("time",),
                {
                    # Strictly forecast_reference_time, but CF checkers require a dimension of
                    # this name to be time.
                    "standard_name": "time",
                    "long_name": "Time of the initial conditions",
                    "units": units,
                    "calendar": "standard",
                },
                hours[:1],
            ),
            Variable(
                "lead_time",
                ("lead_time",),
                {
                    "standard_name": "forecast_period",
                    "long_name": "Time since the initial conditions",
                    "units": "hours",
                    # xarray decodes durations by this attribute; with units alone it warns.
                    "dtype": "timedelta64[ns]",
                },
                hours,
            ),
        )
    return (
        Variable(
            "time",
            ("time",),
            {
                "standard_name": "time",
                "long_name": "Valid time",
                "units": units,
                "calendar": "standard",
                "axis": "T",
            },
            hours,
        ),
    )


def output_longitudes(grid: AnyGrid) -> NDArray[np.float64]:
    """Return longitudes as they are stored."""
    return grid.output_longitudes() if isinstance(grid, RegularGrid) else grid.longitudes()


def map_coordinates(grid: AnyGrid) -> tuple[Variable, ...]:
    """Return the spatial coordinates of a grid and, last, its grid mapping."""
    return _lambert(grid) if isinstance(grid, LambertGrid) else _regular(grid)


_LATITUDE = {"standard_name": "latitude", "long_name": "Latitude", "units": "degrees_north"}
_LONGITUDE = {"standard_name": "longitude", "long_name": "Longitude", "units": "degrees_east"}


def _regular(grid: Grid | LatLonGrid) -> tuple[Variable, ...]:
    return (
        Variable("lat", ("lat",), _LATITUDE | {"axis": "Y"}, _stored(grid.output_latitudes())),
        Variable("lon", ("lon",), _LONGITUDE | {"axis": "X"}, _stored(grid.output_longitudes())),
        _crs(
            grid,
            {
                "grid_mapping_name": "latitude_longitude",
                "longitude_of_prime_meridian": 0.0,
                "semi_major_axis": 6378137.0,
                "inverse_flattening": 298.257223563,
            },
        ),
    )


def _stored(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ascontiguousarray(values, "<f8")


def _lambert(grid: LambertGrid) -> tuple[Variable, ...]:
    return (
        Variable("y", ("y",), _projected("y", "Northward"), grid.y().astype("<f8")),
        Variable("x", ("x",), _projected("x", "Eastward"), grid.x().astype("<f8")),
        Variable("latitude", ("y", "x"), _LATITUDE, grid.latitudes().astype("<f8")),
        Variable("longitude", ("y", "x"), _LONGITUDE, grid.longitudes().astype("<f8")),
        _crs(
            grid,
            {
                "grid_mapping_name": "lambert_conformal_conic",
                "standard_parallel": grid.standard_parallel,
                "longitude_of_central_meridian": grid.central_meridian - 360.0,
                "latitude_of_projection_origin": grid.standard_parallel,
                "false_easting": 0.0,
                "false_northing": 0.0,
                "earth_radius": grid.radius_m,
                "semi_major_axis": grid.radius_m,
                "semi_minor_axis": grid.radius_m,
            },
        ),
    )


def _projected(name: str, direction: str) -> dict[str, str]:
    return {
        "standard_name": f"projection_{name}_coordinate",
        "long_name": f"{direction} distance from the projection's origin",
        "units": "m",
        "axis": name.upper(),
    }


def _crs(grid: AnyGrid, attributes: Mapping[str, str | float]) -> Variable:
    wkt = well_known_text(grid)
    named = {
        "long_name": "Coordinate reference system",
        **attributes,
        # Only WKT can name an EPSG code. GDAL reads it as `spatial_ref`, CF calls it `crs_wkt`.
        "crs_wkt": wkt,
        "spatial_ref": wkt,
    }
    return Variable(CRS, (), named, np.array(0, dtype="<i4"))
