"""Footprint, bounding box and projection of a grid, as STAC describes them.

References
----------
GeoJSON, RFC 7946, sections 3.1.6 and 3.1.9 for the order of points and the antimeridian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workflows.crs import EPSG, projjson
from workflows.grids import AnyGrid, Floats, RegularGrid

SIDES_PER_EDGE = 16
"""Keeps the default Lambert grid's polygon within half its spacing of the edge."""
DECIMALS = 6
"""Of degrees, as RFC 7946 recommends: a tenth of a metre."""

Ring = list[list[float]]


@dataclass(frozen=True)
class Footprint:
    """The area that a grid's points cover, WGS84."""

    geometry: dict[str, Any]
    """GeoJSON."""
    bbox: list[float]
    """West, south, east, north; west is greater than east across the antimeridian."""


def footprint_of(grid: AnyGrid) -> Footprint:
    """Return the area that a grid covers, from the points on its edges."""
    if isinstance(grid, RegularGrid):
        return _rectangle(grid)
    latitudes, longitudes = grid.latitudes(), grid.longitudes()
    # Unwrapped, so that neighbouring points stay neighbours: no point of the map lies 180 degrees
    # from the central meridian.
    middle = grid.central_meridian - 360.0
    longitudes = middle + (longitudes - middle + 180.0) % 360.0 - 180.0
    ring = _ring(longitudes, latitudes)
    vertices = np.array(ring)
    west, south = vertices.min(axis=0)
    east, north = vertices.max(axis=0)
    if west >= -180.0:
        geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [ring]}
        return Footprint(geometry, [float(west), float(south), float(east), float(north)])
    beyond = [[east + 360.0, north] for east, north in _clipped(ring, -180.0, keep_east=False)]
    parts = [[beyond], [_clipped(ring, -180.0, keep_east=True)]]
    return Footprint(
        {"type": "MultiPolygon", "coordinates": parts},
        [float(west) + 360.0, float(south), float(east), float(north)],
    )


def _rectangle(grid: RegularGrid) -> Footprint:
    north, south = (round(float(end), DECIMALS) for end in grid.output_latitudes()[[0, -1]])
    west, east = (round(float(end), DECIMALS) for end in grid.output_longitudes()[[0, -1]])
    if grid.is_global:
        # The last point lies one spacing west of 180 degrees, but the grid is periodic.
        west, east = -180.0, 180.0
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    if east <= 180.0:
        return Footprint({"type": "Polygon", "coordinates": [ring]}, [west, south, east, north])
    beyond = [[x - 360.0, y] for x, y in _clipped(ring, 180.0, keep_east=True)]
    parts = [[_clipped(ring, 180.0, keep_east=False)], [beyond]]
    return Footprint(
        {"type": "MultiPolygon", "coordinates": parts}, [west, south, east - 360.0, north]
    )


def _ring(longitudes: Floats, latitudes: Floats) -> Ring:
    """Return the edges as a closed ring, counter-clockwise from the south-west corner."""
    edges: list[tuple[Any, ...]] = [
        (0, slice(None)),
        (slice(None), -1),
        (-1, slice(None, None, -1)),
        (slice(None, None, -1), 0),
    ]
    ring: Ring = []
    for edge in edges:
        east, north = longitudes[edge], latitudes[edge]
        kept = _kept(east, north)[:-1]  # the last point is the first of the next edge
        vertices = np.stack([east[kept], north[kept]], axis=-1).round(DECIMALS)
        ring += vertices.tolist()
    return [*ring, ring[0]]


def _kept(east: Floats, north: Floats) -> NDArray[np.intp]:
    """Choose points of an edge: evenly spaced ones, and the extremes that define the bbox."""
    even = np.linspace(0, len(east) - 1, SIDES_PER_EDGE + 1).round().astype(np.intp)
    extremes = [find(values) for values in (east, north) for find in (np.argmin, np.argmax)]
    return np.unique(np.concatenate([even, extremes]))


def _clipped(ring: Ring, meridian: float, *, keep_east: bool) -> Ring:
    """Return the part of a ring on one side of a meridian (Sutherland-Hodgman clipping)."""
    kept: Ring = []
    for (x, y), (next_x, next_y) in zip(ring[:-1], ring[1:], strict=True):
        inside = x >= meridian if keep_east else x <= meridian
        if inside:
            kept.append([x, y])
        if (x - meridian) * (next_x - meridian) < 0:
            share = (meridian - x) / (next_x - x)
            kept.append([meridian, round(y + share * (next_y - y), DECIMALS)])
    return [*kept, kept[0]]


def projection_of(grid: AnyGrid) -> dict[str, Any]:
    """Return the fields of STAC's projection extension; grid points are cell centres."""
    n_y, n_x = grid.shape
    if isinstance(grid, RegularGrid):
        latitudes, longitudes = grid.output_latitudes(), grid.output_longitudes()
        first_y, first_x = float(latitudes[0]), float(longitudes[0])
        height = float(latitudes[-1] - latitudes[0]) / (n_y - 1)
        width = 360.0 / n_x if grid.is_global else float(longitudes[-1] - first_x) / (n_x - 1)
        reference: dict[str, Any] = {"proj:code": f"EPSG:{EPSG}"}
    else:
        height = width = grid.spacing_m
        first_y, first_x = grid.first_y_m, grid.first_x_m
        reference = {"proj:code": None, "proj:projjson": projjson(grid)}
    transform = [width, 0.0, first_x - width / 2, 0.0, height, first_y - height / 2]
    return {**reference, "proj:shape": [n_y, n_x], "proj:transform": transform}
