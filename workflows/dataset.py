"""The dataset that an execution delivers: dimensions, coordinates, CF attributes, provenance.

It is only described here. `deployments` writes it as Zarr or NetCDF4, so that both formats have
the same content.

References
----------
CF Conventions 1.8, https://cfconventions.org; ACDD 1.3 for the names of global attributes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from workflows.base import Plan
from workflows.coordinates import (
    CRS,
    Variable,
    ensemble_coordinates,
    map_coordinates,
    output_longitudes,
    time_coordinates,
)
from workflows.times import format_utc

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
"""The same for variables whose names end with a pressure level in hPa."""


class Origin(BaseModel):
    """What a loaded model or data source reports about itself; other facts are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    loader: str = ""
    """Import path of its loader, or ``synthetic``."""
    weights: str = ""
    synthetic: bool | None = None
    """True for a stand-in, whose results are not a forecast; None if unknown."""


class Provenance(BaseModel):
    """Origin of a result, as recorded in its global attributes."""

    # Not "forbid": plans and manifests of earlier releases have keys that are no longer used.
    model_config = ConfigDict(frozen=True, extra="ignore")

    model: Origin
    data_source: Origin
    conditioned_on: tuple[Origin, ...] = ()
    """Models and data source of the forecast that conditions this one."""
    software: Mapping[str, str] = {}
    """Versions of packages that computed the result, ``earth2serve`` among them."""
    references: str = PROJECT_URL
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Models and data sources on which the values of a result depend."""
        return self.model, self.data_source, *self.conditioned_on

    @property
    def synthetic(self) -> bool | None:
        """True if any origin is a stand-in; None if that is unknown."""
        known = [each.synthetic for each in self.origins]
        return True if True in known else None if None in known else False


@dataclass(frozen=True)
class Dataset:
    """Dimensions, coordinates, fields and global attributes of a result."""

    dims: Mapping[str, int]
    coordinates: tuple[Variable, ...]
    fields: tuple[Variable, ...]
    attributes: Mapping[str, str | float]

    @property
    def field_shape(self) -> tuple[int, ...]:
        """Shape of every field, all dimensions in order."""
        return tuple(self.dims.values())

    def shape(self, variable: Variable) -> tuple[int, ...]:
        """Return the shape of a variable."""
        return tuple(self.dims[dim] for dim in variable.dims)


def field_index(plan: Plan, member: int, time_index: int) -> tuple[int, ...]:
    """Return the index of one map along the dimensions that precede the spatial ones."""
    return (member, 0, time_index) if plan.time_layout == "lead_time" else (member, time_index)


def variable_attributes(name: str) -> dict[str, str]:
    """Return the CF attributes of a model variable, by its Earth2Studio name.

    An unknown name gets only a long name, since its standard name and units cannot be guessed.
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
    """Return the description of a plan's dataset.

    Returns
    -------
    Dataset
        With dimensions (ensemble, time, lat, lon), or (ensemble, time, lead_time, lat, lon) with
        one time, as ``plan.time_layout`` requires; latitudes southwards, longitudes from -180. For
        a `LambertGrid` the last two are y, northwards, and x, eastwards.
    """
    times = time_coordinates(plan)
    n_y, n_x = plan.grid.shape
    dims = {
        "ensemble": len(plan.seeds),
        **{time.name: plan.n_times if time is times[-1] else 1 for time in times},
        plan.grid.dims[0]: n_y,
        plan.grid.dims[1]: n_x,
    }
    coordinates = (*ensemble_coordinates(plan), *times, *map_coordinates(plan.grid))
    auxiliary = " ".join(
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
                "coordinates": auxiliary,
            },
        )
        for name in plan.variables
    )
    return Dataset(dims, coordinates, fields, _global_attributes(plan, execution_id, provenance))


def _global_attributes(
    plan: Plan, execution_id: str, provenance: Provenance
) -> dict[str, str | float]:
    # Numbers are floats: Zarr would read JSON integers as int64, which CF 1.8 lacks.
    model, data_source = provenance.model, provenance.data_source
    weights = model.weights or "none"
    version = provenance.software.get("earth2serve", "unknown")
    created, start, end = map(format_utc, (provenance.created, plan.start_time, plan.end_time()))
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
        # Not in CF, but xarray marks crs as a coordinate by this attribute.
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
        "conditioning_reference_time": format_utc(plan.conditioning.start_time),
    }
