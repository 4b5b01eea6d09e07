"""The parts of a map that do not depend on its field: sampling, coasts, graticule and labels."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deployments.runtime.coastline import coastline
from workflows.grids import LambertGrid, RegularGrid

Pixels = NDArray[np.uint8]
Index = NDArray[np.intp]

GRATICULE_LINE, COAST_LINE = 1, 2
_MIN_WIDTH, _MAX_WIDTH = 720, 1440
_REGIONAL_INTERVAL = 10
"""Degrees between the graticule's lines on a regional map."""


class Label(NamedTuple):
    """A label of the graticule."""

    is_below: bool
    """Whether it is below the map rather than left of it."""
    position: float
    """Pixels from the left or the upper edge of the map."""
    text: str


@dataclass(frozen=True)
class Basemap:
    """A map without its field."""

    rows: Index
    """Row of the field for each row of the map, from the top."""
    columns: Index
    """Column of the field for each column of the map."""
    lines: Pixels
    """`GRATICULE_LINE`, `COAST_LINE` or zero, shape (row, column)."""
    labels: tuple[Label, ...]
    is_identity: bool
    """Whether the map has the pixels of the field."""


@functools.lru_cache(maxsize=8)
def global_basemap(n_lat: int, n_lon: int) -> Basemap:
    """Return the basemap of a global field, from the north pole and longitude -180."""
    width = min(max(n_lon, _MIN_WIDTH), _MAX_WIDTH)
    height = n_lat if n_lon == width and abs(n_lat - width / 2) <= 1 else width // 2 + 1
    rows = np.rint(np.linspace(0, n_lat - 1, height)).astype(np.intp)
    columns = np.floor(np.arange(width) * n_lon / width + 0.5).astype(np.intp) % n_lon
    return Basemap(
        rows,
        columns,
        _global_lines(height, width),
        tuple(_global_labels(height, width)),
        (height, width) == (n_lat, n_lon),
    )


def _global_lines(height: int, width: int) -> Pixels:
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    for east in range(-150, 180, 30):
        x = (east + 180) / 360 * width
        draw.line([(x, 0), (x, height)], fill=GRATICULE_LINE)
    for north in range(-60, 90, 30):
        y = (90 - north) / 180 * (height - 1)
        draw.line([(0, y), (width, y)], fill=GRATICULE_LINE)
    for ring in coastline():
        across, down = (ring[:, 0] + 180) / 360 * width, (90 - ring[:, 1]) / 180 * (height - 1)
        points = list(zip(across.tolist(), down.tolist(), strict=True))
        for start, end in zip(points, points[1:], strict=False):
            # Rings are closed along the date line and at the pole, which are no coasts.
            if (
                not (start[0] == end[0] and start[0] in (0, width))
                and min(start[1], end[1]) < height - 2
            ):
                draw.line([start, end], fill=COAST_LINE)
    return np.asarray(image)


def _global_labels(height: int, width: int) -> Iterator[Label]:
    interval = 30 if width >= 700 else 60
    for east in range(-180, 181, interval):
        yield Label(True, (east + 180) / 360 * width, _degrees(east, "E", "W"))
    for north in range(-90, 91, 30):
        yield Label(False, (90 - north) / 180 * (height - 1), _degrees(north, "N", "S"))


@functools.lru_cache(maxsize=8)
def regular_basemap(grid: RegularGrid) -> Basemap:
    """Return the basemap of a field on any regular grid, north at the top."""
    north, south = grid.output_latitudes()[[0, -1]]
    longitudes = grid.output_longitudes()
    west = longitudes[0]
    east = west + 360.0 if grid.is_global else longitudes[-1]
    width = min(max(grid.n_lon, _MIN_WIDTH), _MAX_WIDTH)
    height = max(round(width * (north - south) / (east - west)), 1)
    columns = np.linspace(0, grid.n_lon if grid.is_global else grid.n_lon - 1, width)
    return Basemap(
        np.rint(np.linspace(0, grid.n_lat - 1, height)).astype(np.intp),
        np.rint(columns).astype(np.intp) % grid.n_lon,
        _regular_lines((north, west, south, east), height, width),
        tuple(_regular_labels((north, west, south, east), height, width)),
        False,
    )


Bounds = tuple[float, float, float, float]
"""North, west, south, east, degrees."""


def _regular_lines(bounds: Bounds, height: int, width: int) -> Pixels:
    north, west, south, east = bounds
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)

    def column(longitude: Any) -> Any:
        return (longitude - west) / (east - west) * (width - 1)

    def row(latitude: Any) -> Any:
        return (north - latitude) / (north - south) * (height - 1)

    interval = _interval(bounds)
    for line in range(-360, 541, interval):
        draw.line([(column(line), 0), (column(line), height)], fill=GRATICULE_LINE)
        draw.line([(0, row(line)), (width, row(line))], fill=GRATICULE_LINE)
    for ring in coastline():
        # Longitudes of the grid may exceed 180 degrees.
        for turn in (0.0, 360.0):
            across, down = column(ring[:, 0] + turn), row(ring[:, 1])
            at_edge = (np.abs(ring[:, 0]) == 180.0) | (ring[:, 1] <= -89.5)
            for k in np.flatnonzero(~(at_edge[1:] & at_edge[:-1])):
                draw.line([(across[k], down[k]), (across[k + 1], down[k + 1])], fill=COAST_LINE)
    return np.asarray(image)


def _interval(bounds: Bounds) -> int:
    """Return the degrees between lines of the graticule: about six of them across the map."""
    span = bounds[3] - bounds[1]
    return next((step for step in (1, 2, 5, 10, 15, 30) if span / step <= 13), 60)


def _regular_labels(bounds: Bounds, height: int, width: int) -> Iterator[Label]:
    north, west, south, east = bounds
    interval = _interval(bounds)
    for line in range(-360, 541, interval):
        if west <= line <= east:
            at = (line - west) / (east - west) * width
            yield Label(True, at, _degrees((line + 180) % 360 - 180, "E", "W"))
        if south <= line <= north:
            at = (north - line) / (north - south) * (height - 1)
            yield Label(False, at, _degrees(line, "N", "S"))


@functools.lru_cache(maxsize=8)
def regional_basemap(grid: LambertGrid) -> Basemap:
    """Return the basemap of a regional field, north at the top."""
    width = min(max(grid.n_x, _MIN_WIDTH), _MAX_WIDTH)
    height = max(round(width * grid.n_y / grid.n_x), 1)
    return Basemap(
        np.rint(np.linspace(grid.n_y - 1, 0, height)).astype(np.intp),
        np.rint(np.linspace(0, grid.n_x - 1, width)).astype(np.intp),
        _regional_lines(grid, height, width),
        tuple(_regional_labels(grid, height, width)),
        False,
    )


def _regional_lines(grid: LambertGrid, height: int, width: int) -> Pixels:
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)

    def line(latitudes: NDArray[np.float64], longitudes: NDArray[np.float64], fill: int) -> None:
        y, x = grid.project(latitudes, longitudes)
        row = (grid.y()[-1] - y) / (grid.n_y - 1) / grid.spacing_m * (height - 1)
        column = (x - grid.first_x_m) / (grid.n_x - 1) / grid.spacing_m * (width - 1)
        # Segments across the cut of the projection's cone are far outside of the map.
        near = (np.abs(row) < 9 * height) & (np.abs(column) < 9 * width)
        for k in np.flatnonzero(near[1:] & near[:-1]):
            draw.line([(column[k], row[k]), (column[k + 1], row[k + 1])], fill=fill)

    parallel = np.arange(-180.0, 180.5, 0.5)
    for north in range(-80, 90, _REGIONAL_INTERVAL):
        line(np.full(parallel.shape, float(north)), parallel, GRATICULE_LINE)
    meridian = np.arange(-80.0, 80.5, 0.5)
    for east in range(-180, 180, _REGIONAL_INTERVAL):
        line(meridian, np.full(meridian.shape, float(east)), GRATICULE_LINE)
    for ring in coastline():
        line(ring[:, 1], ring[:, 0], COAST_LINE)
    return np.asarray(image)


def _regional_labels(grid: LambertGrid, height: int, width: int) -> Iterator[Label]:
    """Yield labels where the graticule meets the left and the lower edge."""
    latitudes = grid.latitudes()[::-1, 0]
    longitudes = np.unwrap(grid.longitudes()[0], period=360)
    for north in range(-80, 90, _REGIONAL_INTERVAL):
        if latitudes.min() < north < latitudes.max():
            row = np.interp(-north, -latitudes, np.linspace(0, height - 1, grid.n_y))
            yield Label(False, float(row), _degrees(north, "N", "S"))
    for east in range(-360, 361, _REGIONAL_INTERVAL):
        if longitudes.min() < east < longitudes.max():
            column = np.interp(east, longitudes, np.linspace(0, width - 1, grid.n_x))
            yield Label(True, float(column), _degrees((east + 180) % 360 - 180, "E", "W"))


def _degrees(value: int, positive: str, negative: str) -> str:
    side = "" if value in (0, 180, -180) else positive if value > 0 else negative
    return f"{abs(value)}°{side}"
