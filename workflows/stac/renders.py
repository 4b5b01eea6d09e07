"""Choose which variables of a result are drawn, their value ranges and colour maps.

References
----------
GeoCatalog's render options, https://learn.microsoft.com/azure/planetary-computer/ (render
configuration, data cubes); STAC's render extension 2.0; titiler.xarray for ``sel`` and ``bidx``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np

from workflows.base import OutputFormat, Plan
from workflows.dataset import BRIGHTNESS, ON_PRESSURE_LEVELS, REFLECTANCE, variable_attributes

DATA = "data"
"""Key of the asset that holds the result."""
MAX_RENDERS = 10
PREFERRED = ("t2m", "msl", "u10m", "v10m", "tcwv", "z500", "t850", "q850", "u250", "v250")
"""Variables that are offered first, if the result has them."""

Range = tuple[float, float]

ALWAYS_LAST = "2100-01-01"
"""Selecting the nearest time finds the last one of any forecast, so one option fits all items."""
FIRST_STEP = 2
"""Band of the first time after the initial conditions, counted from 1; every result has it."""

_SURFACE: Mapping[str, Range] = {
    "u10m": (-20, 20),
    "v10m": (-20, 20),
    "u100m": (-25, 25),
    "v100m": (-25, 25),
    "t2m": (233, 313),
    "msl": (96_000, 105_000),
    "sp": (50_000, 105_000),
    "tcwv": (0, 70),
}
_BY_STANDARD_NAME: Mapping[str, Range] = {REFLECTANCE: (0, 1), BRIGHTNESS: (190, 320)}
_WATER_VAPOUR: Range = (200, 280)
"""Brightness temperatures of the water vapour bands, which do not see the ground."""
_BY_PRESSURE: Mapping[str, Mapping[int, Range]] = {
    "u": {1000: (-20, 20), 850: (-30, 30), 500: (-50, 50), 250: (-80, 80), 50: (-60, 60)},
    "v": {1000: (-20, 20), 850: (-30, 30), 500: (-40, 40), 250: (-60, 60), 50: (-40, 40)},
    "z": {
        1000: (-4000, 4000),
        850: (9500, 16_500),
        500: (46_000, 59_000),
        250: (91_000, 109_000),
        100: (145_000, 166_000),
        50: (183_000, 205_000),
    },
    "t": {1000: (233, 313), 850: (228, 308), 500: (223, 278), 250: (203, 243), 50: (183, 238)},
    "q": {
        1000: (0, 0.022),
        850: (0, 0.016),
        700: (0, 0.01),
        500: (0, 0.005),
        300: (0, 0.001),
        150: (0, 2e-5),
        100: (0, 5e-6),
    },
}
"""Ranges by level in hPa; between levels they are interpolated in the logarithm of pressure."""
_COLOURS: Mapping[str, str] = {
    "air_temperature": "turbo",
    "eastward_wind": "rdbu_r",
    "northward_wind": "rdbu_r",
    "air_pressure_at_mean_sea_level": "viridis",
    "surface_air_pressure": "viridis",
    "geopotential": "viridis",
    "specific_humidity": "ylgnbu",
    "atmosphere_mass_content_of_water_vapor": "ylgnbu",
    REFLECTANCE: "gray",
    # Reversed, so that cold clouds are white.
    BRIGHTNESS: "gray_r",
}


@dataclass(frozen=True)
class Drawing:
    """Title, value range and colour map of one variable."""

    variable: str
    title: str
    low: float
    high: float
    colour_map: str


def drawings(plan: Plan) -> list[Drawing]:
    """Return how a plan's variables are drawn, those with known ranges, at most `MAX_RENDERS`."""
    preferred = [name for name in PREFERRED if name in plan.variables]
    names = dict.fromkeys((*preferred, *plan.variables))
    chosen = [found for name in names if (found := _drawing(name)) is not None]
    return chosen[:MAX_RENDERS]


def _drawing(name: str) -> Drawing | None:
    attributes = variable_attributes(name)
    standard_name = attributes.get("standard_name", "")
    values = _range(name, standard_name)
    if values is None or standard_name not in _COLOURS:
        return None
    return Drawing(name, attributes["long_name"], *values, _COLOURS[standard_name])


def _range(name: str, standard_name: str) -> Range | None:
    if name in _SURFACE:
        return _SURFACE[name]
    if name in {"abi08c", "abi09c", "abi10c"}:
        return _WATER_VAPOUR
    if standard_name in _BY_STANDARD_NAME:
        return _BY_STANDARD_NAME[standard_name]
    match = re.fullmatch(r"([a-z])(\d+)", name)
    if match is None or match[1] not in ON_PRESSURE_LEVELS or not int(match[2]):
        return None
    known = sorted(_BY_PRESSURE[match[1]].items())
    levels = np.log([level for level, _ in known])
    low, high = (
        float(np.interp(np.log(int(match[2])), levels, [values[end] for _, values in known]))
        for end in (0, 1)
    )
    return float(f"{low:.3g}"), float(f"{high:.3g}")


def render_options(plan: Plan) -> list[dict[str, Any]]:
    """Return GeoCatalog's render options for a collection with results of plans like this one.

    They fit items of other dates and lengths as well. Ids differ between formats and time layouts,
    so that one collection can hold options for each.
    """
    layout = "" if plan.time_layout == "time" else f"-{plan.time_layout}"
    file = {"zarr": "Zarr", "netcdf4": "NetCDF"}[plan.output_format]
    return [
        {
            "id": f"earth2serve-{drawing.variable}-{plan.output_format}{layout}".replace("_", "-"),
            "name": f"{drawing.title} ({file}{', lead times' if layout else ''})",
            "type": "raster-tile",
            "options": _options(plan, drawing),
            "minZoom": 0,
        }
        for drawing in drawings(plan)
    ]


def _options(plan: Plan, drawing: Drawing) -> str:
    pairs: list[tuple[str, str | int]] = [
        ("assets", _drawn_asset(plan.output_format)),
        ("subdataset_name", drawing.variable),
        ("sel", f"time={ALWAYS_LAST}"),
        ("sel", "ensemble=0"),
        ("sel_method", "nearest"),
    ]
    if plan.time_layout == "lead_time":
        # TiTiler cannot select a duration; a dimension without a selection becomes bands.
        pairs.append(("bidx", FIRST_STEP))
    pairs += [
        ("rescale", f"{drawing.low:g},{drawing.high:g}"),
        ("colormap_name", drawing.colour_map),
    ]
    # GeoCatalog's own examples do not escape these.
    return urlencode(pairs, safe="=,:")


def _drawn_asset(output_format: OutputFormat) -> str:
    """Return the key of the asset that GeoCatalog draws; for NetCDF it is one that it derives."""
    return DATA if output_format == "zarr" else f"{DATA}-kerchunk"


def renders(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the renders of one item, by variable: the first member at the last time.

    Besides the extension's own fields they have ``variable`` and ``sel``, as titiler.xarray names
    them.
    """
    last = plan.end_time() if plan.time_layout == "time" else plan.start_time
    sel = [f"time={last:%Y-%m-%dT%H:%M:%S}", "ensemble=0"]
    band = {"bidx": [plan.n_times]} if plan.time_layout == "lead_time" else {}
    return {
        drawing.variable: {
            "title": drawing.title,
            "assets": [DATA],
            "rescale": [[drawing.low, drawing.high]],
            "colormap_name": drawing.colour_map,
            "variable": drawing.variable,
            "sel": sel,
            **band,
        }
        for drawing in drawings(plan)
    }
