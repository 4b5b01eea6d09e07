"""The dataset that an execution delivers: dimensions, coordinates, CF attributes, provenance.

The description is pure; `deployments` writes it as Zarr or NetCDF4, so that both formats say the
same.

References
----------
CF Conventions 1.8, https://cfconventions.org; ACDD 1.3 for the names of global attributes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from workflows.base import Plan

CONVENTIONS = "CF-1.8, ACDD-1.3"
FIELD_DTYPE = np.dtype("<f4")
PROJECT_URL = "https://github.com/NVIDIA/earth2studio"

SURFACE: Mapping[str, tuple[str, str, str]] = {
    "u10m": ("eastward_wind", "Eastward wind at 10 m", "m s-1"),
    "v10m": ("northward_wind", "Northward wind at 10 m", "m s-1"),
    "u100m": ("eastward_wind", "Eastward wind at 100 m", "m s-1"),
    "v100m": ("northward_wind", "Northward wind at 100 m", "m s-1"),
    "t2m": ("air_temperature", "Air temperature at 2 m", "K"),
    "msl": ("air_pressure_at_mean_sea_level", "Mean sea level pressure", "Pa"),
    "tcwv": ("atmosphere_mass_content_of_water_vapor", "Total column water vapour", "kg m-2"),
}
"""Standard name, long name and units of variables without a level."""

ON_PRESSURE_LEVELS: Mapping[str, tuple[str, str, str]] = {
    "u": ("eastward_wind", "Eastward wind", "m s-1"),
    "v": ("northward_wind", "Northward wind", "m s-1"),
    "z": ("geopotential", "Geopotential", "m2 s-2"),
    "t": ("air_temperature", "Air temperature", "K"),
    "q": ("specific_humidity", "Specific humidity", "kg kg-1"),
}
"""The same for variables whose name goes on with a pressure level in hPa."""


class Origin(BaseModel):
    """What a loaded model or data source says of itself; further facts are left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    loader: str = ""
    """Import path of what loaded it, or ``synthetic``."""
    weights: str = ""
    synthetic: bool | None = None
    """True for a stand-in: what comes of it is no forecast. None if that is not known."""


class Provenance(BaseModel):
    """Where a result comes from; what the global attributes say of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Origin
    data_source: Origin
    software: Mapping[str, str] = {}
    """Versions of what computed the result, by package; ``earth2serve`` among them."""
    institution: str = ""
    references: str = PROJECT_URL
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def synthetic(self) -> bool | None:
        """True if the model or its initial conditions are stand-ins, None if nobody knows."""
        known = (self.model.synthetic, self.data_source.synthetic)
        return True if True in known else None if None in known else False


@dataclass(frozen=True)
class Variable:
    """One array of the dataset."""

    name: str
    dims: tuple[str, ...]
    attributes: Mapping[str, str | float]
    values: NDArray[Any] | None = None
    """What it holds; None for the fields that the model computes, float32, NaN until written."""


@dataclass(frozen=True)
class Dataset:
    """Dimensions, variables (coordinates first) and global attributes of a result."""

    dims: Mapping[str, int]
    coordinates: tuple[Variable, ...]
    fields: tuple[Variable, ...]
    attributes: Mapping[str, str | float]
    field_shape: tuple[int, ...] = field(init=False)
    """Shape of every field: all dimensions in order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "field_shape", tuple(self.dims.values()))

    def shape(self, variable: Variable) -> tuple[int, ...]:
        """Give the shape of a variable."""
        return tuple(self.dims[dim] for dim in variable.dims)


def field_index(plan: Plan, member: int, time_index: int) -> tuple[int, ...]:
    """Give the place of one map along the dimensions before lat and lon."""
    return (member, 0, time_index) if plan.time_layout == "lead_time" else (member, time_index)


def variable_attributes(name: str) -> dict[str, str]:
    """Give the CF attributes of a model variable, by its Earth2Studio name.

    A name that is not known here gets a long name alone: neither a standard name nor units can be
    guessed.
    """
    if name in SURFACE:
        standard_name, long_name, units = SURFACE[name]
    elif (match := re.fullmatch(r"([a-z])(\d+)", name)) and match[1] in ON_PRESSURE_LEVELS:
        standard_name, quantity, units = ON_PRESSURE_LEVELS[match[1]]
        long_name = f"{quantity} at {match[2]} hPa"
    else:
        return {"long_name": name}
    return {"standard_name": standard_name, "long_name": long_name, "units": units}


def describe(plan: Plan, execution_id: str, provenance: Provenance) -> Dataset:
    """Describe the dataset that a plan leads to.

    Returns
    -------
    Dataset
        With dimensions (ensemble, time, lat, lon), or (ensemble, time, lead_time, lat, lon) with
        one time, as ``plan.time_layout`` says; latitudes southwards, longitudes from -180.
    """
    times = _times(plan)
    dims = {
        "ensemble": len(plan.seeds),
        **{time.name: plan.n_times if time is times[-1] else 1 for time in times},
        "lat": plan.grid.n_lat,
        "lon": plan.grid.n_lon,
    }
    coordinates = (
        Variable(
            "ensemble",
            ("ensemble",),
            {"standard_name": "realization", "long_name": "Ensemble member", "units": "1"},
            np.arange(len(plan.seeds), dtype="<i4"),
        ),
        *times,
        Variable(
            "lat",
            ("lat",),
            {
                "standard_name": "latitude",
                "long_name": "Latitude",
                "units": "degrees_north",
                "axis": "Y",
            },
            plan.grid.latitudes().astype("<f8"),
        ),
        Variable(
            "lon",
            ("lon",),
            {
                "standard_name": "longitude",
                "long_name": "Longitude",
                "units": "degrees_east",
                "axis": "X",
            },
            plan.grid.output_longitudes().astype("<f8"),
        ),
        # CF 1.8 has no integer type that holds every seed; float64 is exact up to 2**53.
        Variable(
            "seed",
            ("ensemble",),
            {"long_name": "Seed of the member's random numbers", "units": "1"},
            np.array(plan.seeds, dtype="<f8"),
        ),
        Variable(
            "crs",
            (),
            {
                "long_name": "Coordinate reference system",
                "grid_mapping_name": "latitude_longitude",
                "longitude_of_prime_meridian": 0.0,
                "semi_major_axis": 6378137.0,
                "inverse_flattening": 298.257223563,
            },
            np.array(0, dtype="<i4"),
        ),
    )
    fields = tuple(
        Variable(
            name,
            tuple(dims),
            {
                **variable_attributes(name),
                "coverage_content_type": "modelResult",
                "grid_mapping": "crs",
                "coordinates": "seed",
            },
        )
        for name in plan.variables
    )
    return Dataset(dims, coordinates, fields, _global_attributes(plan, execution_id, provenance))


def _times(plan: Plan) -> tuple[Variable, ...]:
    units = f"hours since {str(plan.start()).replace('T', ' ')}"
    hours = (plan.lead_times() / np.timedelta64(1, "h")).astype("<i4")
    if plan.time_layout == "lead_time":
        return (
            Variable(
                "time",
                ("time",),
                {
                    # It is the forecast_reference_time, but the checkers of CF want a dimension
                    # of this name to be time.
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
                    # Xarray decodes durations by this attribute; by their units it only warns.
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


def _global_attributes(
    plan: Plan, execution_id: str, provenance: Provenance
) -> dict[str, str | float]:
    # Numbers are floats: as JSON integers they would come back as int64, which CF 1.8 lacks.
    model, data_source = provenance.model, provenance.data_source
    weights = model.weights or "none"
    version = provenance.software.get("earth2serve", "unknown")
    created, start, end = map(_iso, (provenance.created, plan.start_time, plan.end_time()))
    latitudes, longitudes = plan.grid.latitudes(), plan.grid.output_longitudes()
    attributes: dict[str, str | float] = {
        "Conventions": CONVENTIONS,
        "title": f"{model.name} ensemble forecast from {start}",
        "summary": f"{len(plan.seeds)} members, {plan.n_steps} steps of {plan.step_hours} hours, "
        f"from {data_source.name} initial conditions of {start}.",
        "keywords": "weather forecast, ensemble, machine learning",
        "history": f"{created}: computed by earth2serve {version}",
        "source": f"{model.name} (weights: {weights}), {data_source.name} initial conditions",
        "references": provenance.references,
        "id": execution_id,
        "date_created": created,
        "product_version": version,
        "time_coverage_start": start,
        "time_coverage_end": end,
        "time_coverage_resolution": f"PT{plan.step_hours}H",
        "geospatial_lat_min": float(latitudes.min()),
        "geospatial_lat_max": float(latitudes.max()),
        "geospatial_lat_units": "degrees_north",
        "geospatial_lon_min": float(longitudes.min()),
        "geospatial_lon_max": float(longitudes.max()),
        "geospatial_lon_units": "degrees_east",
        # Not of CF, but how xarray learns, and writes, that crs is a coordinate.
        "coordinates": "crs",
        "earth2serve_version": version,
        "workflow": plan.workflow,
        "execution_id": execution_id,
        "model": model.name,
        "model_loader": model.loader,
        "weights": weights,
        "data_source": data_source.name,
        "data_source_loader": data_source.loader,
        "synthetic": {True: "true", False: "false", None: "unknown"}[provenance.synthetic],
        "software_versions": ", ".join(
            f"{package} {number}" for package, number in provenance.software.items()
        ),
    }
    if provenance.institution:
        attributes["institution"] = provenance.institution
    if provenance.synthetic:
        attributes["title"] = f"Synthetic data in place of a {model.name} forecast from {start}"
        attributes["comment"] = (
            "Synthetic: made by a stand-in for the model or its data, not a forecast."
        )
    return attributes


def _iso(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
