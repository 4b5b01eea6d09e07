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

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from workflows.base import Plan
from workflows.coordinates import (
    CRS,
    Variable,
    members_of,
    output_longitudes,
    points_of,
    times_of,
)

CONVENTIONS = "CF-1.8, ACDD-1.3"
FIELD_DTYPE = np.dtype("<f4")
PROJECT_URL = "https://github.com/NVIDIA/earth2studio"

REFLECTANCE = "toa_bidirectional_reflectance"
BRIGHTNESS = "toa_brightness_temperature"
SURFACE: Mapping[str, tuple[str, str, str]] = {
    "u10m": ("eastward_wind", "Eastward wind at 10 m", "m s-1"),
    "v10m": ("northward_wind", "Northward wind at 10 m", "m s-1"),
    "u100m": ("eastward_wind", "Eastward wind at 100 m", "m s-1"),
    "v100m": ("northward_wind", "Northward wind at 100 m", "m s-1"),
    "t2m": ("air_temperature", "Air temperature at 2 m", "K"),
    "msl": ("air_pressure_at_mean_sea_level", "Mean sea level pressure", "Pa"),
    "tcwv": ("atmosphere_mass_content_of_water_vapor", "Total column water vapour", "kg m-2"),
    "sp": ("surface_air_pressure", "Surface pressure", "Pa"),
    "abi01c": (REFLECTANCE, "GOES ABI band 1, reflectance at 0.47 um", "1"),
    "abi02c": (REFLECTANCE, "GOES ABI band 2, reflectance at 0.64 um", "1"),
    "abi03c": (REFLECTANCE, "GOES ABI band 3, reflectance at 0.86 um", "1"),
    "abi07c": (BRIGHTNESS, "GOES ABI band 7, brightness temperature at 3.9 um", "K"),
    "abi08c": (BRIGHTNESS, "GOES ABI band 8, brightness temperature at 6.2 um", "K"),
    "abi09c": (BRIGHTNESS, "GOES ABI band 9, brightness temperature at 6.9 um", "K"),
    "abi10c": (BRIGHTNESS, "GOES ABI band 10, brightness temperature at 7.3 um", "K"),
    "abi13c": (BRIGHTNESS, "GOES ABI band 13, brightness temperature at 10.3 um", "K"),
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

    # Not "forbid": plans and manifests of earlier releases have keys that are no longer used.
    model_config = ConfigDict(frozen=True, extra="ignore")

    model: Origin
    data_source: Origin
    conditioned_on: tuple[Origin, ...] = ()
    """Models and data source of the forecast that conditions this one."""
    software: Mapping[str, str] = {}
    """Versions of what computed the result, by package; ``earth2serve`` among them."""
    references: str = PROJECT_URL
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Models and data sources: what the values of a result depend on."""
        return self.model, self.data_source, *self.conditioned_on

    @property
    def synthetic(self) -> bool | None:
        """True if the model or its initial conditions are stand-ins, None if nobody knows."""
        known = [each.synthetic for each in self.origins]
        return True if True in known else None if None in known else False


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
    """Give the place of one map along the dimensions before its own two."""
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
        one time, as ``plan.time_layout`` says; latitudes southwards, longitudes from -180. Of a
        `LambertGrid` the last two are y, northwards, and x, eastwards.
    """
    times = times_of(plan)
    n_y, n_x = plan.grid.shape
    dims = {
        "ensemble": len(plan.seeds),
        **{time.name: plan.n_times if time is times[-1] else 1 for time in times},
        plan.grid.dims[0]: n_y,
        plan.grid.dims[1]: n_x,
    }
    coordinates = (*members_of(plan), *times, *points_of(plan.grid))
    beside = " ".join(
        variable.name
        for variable in coordinates
        if variable.name not in dims and variable.name != CRS
    )
    fields = tuple(
        Variable(
            name,
            tuple(dims),
            {
                **variable_attributes(name),
                "coverage_content_type": "modelResult",
                "grid_mapping": CRS,
                "coordinates": beside,
            },
        )
        for name in plan.variables
    )
    return Dataset(dims, coordinates, fields, _global_attributes(plan, execution_id, provenance))


def _global_attributes(
    plan: Plan, execution_id: str, provenance: Provenance
) -> dict[str, str | float]:
    # Numbers are floats: as JSON integers they would come back as int64, which CF 1.8 lacks.
    model, data_source = provenance.model, provenance.data_source
    weights = model.weights or "none"
    version = provenance.software.get("earth2serve", "unknown")
    created, start, end = map(_iso, (provenance.created, plan.start_time, plan.end_time()))
    latitudes, longitudes = plan.grid.latitudes(), output_longitudes(plan.grid)
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
        **_conditioning_attributes(plan, provenance),
        "synthetic": {True: "true", False: "false", None: "unknown"}[provenance.synthetic],
        "software_versions": ", ".join(
            f"{package} {number}" for package, number in provenance.software.items()
        ),
    }
    if provenance.synthetic:
        attributes["title"] = f"Synthetic data in place of a {model.name} forecast from {start}"
        attributes["comment"] = (
            "Synthetic: made by a stand-in for the model or its data, not a forecast."
        )
    return attributes


def _conditioning_attributes(plan: Plan, provenance: Provenance) -> dict[str, str]:
    if plan.conditioning is None:
        return {}
    origins = [
        f"{each.name} (weights: {each.weights or 'none'}, loader: {each.loader})"
        for each in provenance.conditioned_on
    ]
    return {
        "conditioned_on": ", ".join(origins),
        "conditioning_variable": plan.conditioning.variable,
        "conditioning_reference_time": _iso(plan.conditioning.start_time),
    }


def _iso(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
