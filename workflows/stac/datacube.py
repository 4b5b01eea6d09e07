"""Describe a result as a data cube, for STAC's datacube extension.

References
----------
https://github.com/stac-extensions/datacube, version 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workflows.base import Plan
from workflows.coordinates import CRS, Variable
from workflows.crs import EPSG, projjson
from workflows.dataset import FIELD_DTYPE, Dataset
from workflows.grids import AnyGrid, RegularGrid
from workflows.times import format_utc


def dimensions_of(plan: Plan, dataset: Dataset) -> dict[str, Any]:
    """Return ``cube:dimensions`` of a result, in the order of its arrays."""
    coordinates = {variable.name: variable for variable in dataset.coordinates}
    described = {
        "ensemble": {
            "type": "ensemble",
            "extent": [0, len(plan.seeds) - 1],
            "values": list(plan.members),
        },
        **_time_dimensions(plan),
        **_space_dimensions(plan.grid, coordinates),
    }
    return {
        name: {**described[name], "description": coordinates[name].attributes["long_name"]}
        for name in dataset.dims
    }


def _time_dimensions(plan: Plan) -> dict[str, Any]:
    start, end = (format_utc(moment) for moment in (plan.start_time, plan.end_time()))
    if plan.time_layout == "time":
        return {
            "time": {"type": "temporal", "extent": [start, end], "step": f"PT{plan.step_hours}H"}
        }
    return {
        "time": {"type": "temporal", "extent": [start, start], "values": [start]},
        "lead_time": {
            # Clients would read a temporal dimension as dates.
            "type": "lead_time",
            "extent": [0, plan.n_steps * plan.step_hours],
            "step": plan.step_hours,
            "unit": "h",
        },
    }


def _space_dimensions(grid: AnyGrid, coordinates: Mapping[str, Variable]) -> dict[str, Any]:
    reference: Any = EPSG if isinstance(grid, RegularGrid) else projjson(grid)
    described = {}
    for name, axis in zip(grid.dims, "yx", strict=True):
        values, attributes = coordinates[name].values, coordinates[name].attributes
        assert values is not None  # noqa: S101 - only fields have no values
        described[name] = {
            "type": "spatial",
            "axis": axis,
            "extent": [float(values.min()), float(values.max())],
            "step": float(values[1] - values[0]),
            "unit": attributes["units"],
            "reference_system": reference,
        }
    return described


def variables_of(dataset: Dataset) -> dict[str, Any]:
    """Return ``cube:variables`` of a result: its fields and its auxiliary coordinates."""
    auxiliary = {
        variable.name: _variable(variable, "auxiliary")
        for variable in dataset.coordinates
        if variable.name not in dataset.dims and variable.name != CRS
    }
    return {field.name: _variable(field, "data") for field in dataset.fields} | auxiliary


def _variable(variable: Variable, kind: str) -> dict[str, Any]:
    attributes = variable.attributes
    described: dict[str, Any] = {
        "dimensions": list(variable.dims),
        "type": kind,
        "description": attributes["long_name"],
    }
    if "units" in attributes:
        described["unit"] = attributes["units"]
    if variable.values is None:
        return described | {"data_type": FIELD_DTYPE.name, "nodata": "nan"}
    ends = [np.min(variable.values), np.max(variable.values)]
    return described | {"data_type": variable.values.dtype.name, "extent": [float(e) for e in ends]}
