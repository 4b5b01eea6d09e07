"""Coordinate reference systems of grids, as WKT for files and as PROJJSON for STAC.

References
----------
OGC 18-010r7 (WKT); https://proj.org/specifications/projjson.html; EPSG Guidance Note 7-2 for method
9801. `well_known_text` of a regular grid is what PROJ says of EPSG:4326, without its extent.
"""

from __future__ import annotations

from typing import Any, Final

from workflows.grids import AnyGrid, LambertGrid, RegularGrid

EPSG: Final = 4326
"""Code of regular grids: WGS 84, latitude before longitude."""

_NAME = "HRRR's Lambert conformal map"
_CONVERSION = "Lambert conformal conic, one standard parallel"
_METHOD, _METHOD_CODE = "Lambert Conic Conformal (1SP)", 9801

_DEGREE = 'ANGLEUNIT["degree",0.0174532925199433]'
_METRE = 'LENGTHUNIT["metre",1]'
_WKT_UNITS = {"degree": _DEGREE, "metre": _METRE, "unity": 'SCALEUNIT["unity",1]'}
_GREENWICH = f'PRIMEM["Greenwich",0,{_DEGREE}]'
_WGS84 = (
    'GEOGCRS["WGS 84",DATUM["World Geodetic System 1984",'
    f'ELLIPSOID["WGS 84",6378137,298.257223563,{_METRE}]],{_GREENWICH},'
    f'CS[ellipsoidal,2],AXIS["geodetic latitude (Lat)",north,ORDER[1],{_DEGREE}],'
    f'AXIS["geodetic longitude (Lon)",east,ORDER[2],{_DEGREE}],ID["EPSG",{EPSG}]]'
)


def well_known_text(grid: AnyGrid) -> str:
    """Return the WKT (2019) of a grid."""
    if isinstance(grid, RegularGrid):
        return _WGS84
    sphere = _sphere(grid)
    parameters = ",".join(
        f'PARAMETER["{name}",{value:g},{_WKT_UNITS[unit]},ID["EPSG",{code}]]'
        for name, value, unit, code in _parameters(grid)
    )
    return (
        f'PROJCRS["{_NAME}",BASEGEOGCRS["{sphere}",DATUM["{sphere}",'
        f'ELLIPSOID["{sphere}",{grid.radius_m:.0f},0,{_METRE}]],{_GREENWICH}],'
        f'CONVERSION["{_CONVERSION}",METHOD["{_METHOD}",ID["EPSG",{_METHOD_CODE}]],{parameters}],'
        f'CS[Cartesian,2],AXIS["easting (E)",east,ORDER[1],{_METRE}],'
        f'AXIS["northing (N)",north,ORDER[2],{_METRE}]]'
    )


def projjson(grid: LambertGrid) -> dict[str, Any]:
    """Return the PROJJSON of a Lambert grid: one standard parallel, where the scale is 1."""
    sphere = _sphere(grid)
    return {
        "$schema": "https://proj.org/schemas/v0.7/projjson.schema.json",
        "type": "ProjectedCRS",
        "name": _NAME,
        "base_crs": {
            "type": "GeographicCRS",
            "name": sphere,
            "datum": {
                "type": "GeodeticReferenceFrame",
                "name": sphere,
                "ellipsoid": {"name": sphere, "radius": grid.radius_m},
            },
            "coordinate_system": _axes(
                "ellipsoidal",
                "degree",
                ("Geodetic latitude", "Lat", "north"),
                ("Geodetic longitude", "Lon", "east"),
            ),
        },
        "conversion": {
            "name": _CONVERSION,
            "method": {"name": _METHOD, "id": {"authority": "EPSG", "code": _METHOD_CODE}},
            "parameters": [
                {"name": name, "value": value, "unit": unit, "id": {"authority": "EPSG", "code": n}}
                for name, value, unit, n in _parameters(grid)
            ],
        },
        "coordinate_system": _axes(
            "Cartesian", "metre", ("Easting", "E", "east"), ("Northing", "N", "north")
        ),
    }


def _sphere(grid: LambertGrid) -> str:
    return f"Sphere of radius {grid.radius_m:.0f} m"


def _parameters(grid: LambertGrid) -> list[tuple[str, float, str, int]]:
    """Return name, value, unit and EPSG code of the projection's parameters."""
    return [
        ("Latitude of natural origin", grid.standard_parallel, "degree", 8801),
        ("Longitude of natural origin", grid.central_meridian - 360.0, "degree", 8802),
        ("Scale factor at natural origin", 1.0, "unity", 8805),
        ("False easting", 0.0, "metre", 8806),
        ("False northing", 0.0, "metre", 8807),
    ]


def _axes(subtype: str, unit: str, *axes: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "subtype": subtype,
        "axis": [
            {"name": name, "abbreviation": short, "direction": direction, "unit": unit}
            for name, short, direction in axes
        ],
    }
