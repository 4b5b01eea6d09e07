"""What lies under a drawn map: which points it shows, coasts, a graticule and its labels."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from deployments.runtime.coastline import coastline
from workflows.grids import LambertGrid

Pixels = NDArray[np.uint8]
Index = NDArray[np.intp]
Label = tuple[bool, float, str]
"""Whether it stands below the map rather than left of it, how far along, and its words."""

GRATICULE_LINE, COAST_LINE = 1, 2
_MIN_WIDTH, _MAX_WIDTH = 720, 1440


@dataclass(frozen=True)
class Sheet:
    """A map without its field."""

    rows: Index
    """Rows of the field that each row of the map shows, from the top."""
    columns: Index
    lines: Pixels
    labels: tuple[Label, ...]
    is_the_field_itself: bool


@functools.lru_cache(maxsize=8)
def globe(n_lat: int, n_lon: int) -> Sheet:
    """Give the sheet of a global field, from the north pole and -180 degrees east."""
    width = min(max(n_lon, _MIN_WIDTH), _MAX_WIDTH)
    height = n_lat if n_lon == width and abs(n_lat - width / 2) <= 1 else width // 2 + 1
    rows = np.rint(np.linspace(0, n_lat - 1, height)).astype(np.intp)
    columns = np.floor(np.arange(width) * n_lon / width + 0.5).astype(np.intp) % n_lon
    return Sheet(
        rows,
        columns,
        _lines_of_globe(height, width),
        tuple(_labels_of_globe(height, width)),
        (height, width) == (n_lat, n_lon),
    )


def _lines_of_globe(height: int, width: int) -> Pixels:
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
        for one, other in zip(points, points[1:], strict=False):
            # Where rings are closed along the date line or at the pole is no coast.
            if (
                not (one[0] == other[0] and one[0] in (0, width))
                and min(one[1], other[1]) < height - 2
            ):
                draw.line([one, other], fill=COAST_LINE)
    return np.asarray(image)


def _labels_of_globe(height: int, width: int) -> Iterator[Label]:
    every = 30 if width >= 700 else 60
    for east in range(-180, 181, every):
        yield True, (east + 180) / 360 * width, _degrees(east, "E", "W")
    for north in range(-90, 91, 30):
        yield False, (90 - north) / 180 * (height - 1), _degrees(north, "N", "S")


@functools.lru_cache(maxsize=8)
def region(grid: LambertGrid) -> Sheet:
    """Give the sheet of a regional field, north at the top."""
    width = min(max(grid.n_x, _MIN_WIDTH), _MAX_WIDTH)
    height = max(round(width * grid.n_y / grid.n_x), 1)
    return Sheet(
        np.rint(np.linspace(grid.n_y - 1, 0, height)).astype(np.intp),
        np.rint(np.linspace(0, grid.n_x - 1, width)).astype(np.intp),
        _lines_of_region(grid, height, width),
        tuple(_labels_of_region(grid, height, width)),
        False,
    )


_EVERY = 10  # degrees between the lines of a region's graticule


def _lines_of_region(grid: LambertGrid, height: int, width: int) -> Pixels:
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)

    def line(latitudes: NDArray[np.float64], longitudes: NDArray[np.float64], fill: int) -> None:
        y, x = grid.project(latitudes, longitudes)
        down = (grid.y()[-1] - y) / (grid.n_y - 1) / grid.spacing_m * (height - 1)
        across = (x - grid.first_x_m) / (grid.n_x - 1) / grid.spacing_m * (width - 1)
        # What is behind the map's edge, where its cone was cut open, is no line.
        near = (np.abs(down) < 9 * height) & (np.abs(across) < 9 * width)
        for one in np.flatnonzero(near[1:] & near[:-1]):
            draw.line([(across[k], down[k]) for k in (one, one + 1)], fill=fill)

    along = np.arange(-180.0, 180.5, 0.5)
    for north in range(-80, 90, _EVERY):
        line(np.full(along.shape, float(north)), along, GRATICULE_LINE)
    upwards = np.arange(-80.0, 80.5, 0.5)
    for east in range(-180, 180, _EVERY):
        line(upwards, np.full(upwards.shape, float(east)), GRATICULE_LINE)
    for ring in coastline():
        line(ring[:, 1], ring[:, 0], COAST_LINE)
    return np.asarray(image)


def _labels_of_region(grid: LambertGrid, height: int, width: int) -> Iterator[Label]:
    """Label lines where they meet the left and the lower edge."""
    latitudes = grid.latitudes()[::-1, 0]
    longitudes = np.unwrap(grid.longitudes()[0], period=360)
    for north in range(-80, 90, _EVERY):
        if latitudes.min() < north < latitudes.max():
            row = np.interp(-north, -latitudes, np.linspace(0, height - 1, grid.n_y))
            yield False, float(row), _degrees(north, "N", "S")
    for east in range(-360, 361, _EVERY):
        if longitudes.min() < east < longitudes.max():
            column = np.interp(east, longitudes, np.linspace(0, width - 1, grid.n_x))
            yield True, float(column), _degrees((east + 180) % 360 - 180, "E", "W")


def _degrees(value: int, positive: str, negative: str) -> str:
    side = "" if value in (0, 180, -180) else positive if value > 0 else negative
    return f"{abs(value)}°{side}"
