"""Recognize the grid on which a model has its points."""

from __future__ import annotations

import numpy as np

from workflows.grids import AnyGrid, Floats, Grid, LambertGrid, LatLonGrid

TOLERANCE = 1e-3
"""Degrees by which a model's coordinates may differ from evenly spaced ones."""
DECIMALS = 6
"""Of the first and last coordinate of a grid, degrees."""


def grid_through(latitudes: Floats, longitudes: Floats) -> AnyGrid:
    """Return the grid that has given points.

    Parameters
    ----------
    latitudes, longitudes : ndarray, shape (lat,) and (lon,), or both (y, x)
        Degrees.

    Raises
    ------
    ValueError
        If results cannot be stored on it: it is neither regular nor on HRRR's Lambert map.
    """
    latitudes, longitudes = np.asarray(latitudes, float), np.asarray(longitudes, float)
    if latitudes.ndim == 2:
        return LambertGrid.through(latitudes, longitudes)
    n_lat, n_lon = latitudes.size, longitudes.size
    if min(n_lat, n_lon) < 2:
        raise ValueError(f"a grid of {n_lat} x {n_lon} points is too small")
    spacing = float(longitudes[-1] - longitudes[0]) / (n_lon - 1)
    goes_around = abs(spacing * n_lon - 360.0) < TOLERANCE
    ends = [round(float(end), DECIMALS) for end in (latitudes[0], latitudes[-1])]
    first, last = (round(float(end), DECIMALS) for end in (longitudes[0], longitudes[-1]))
    if goes_around and n_lon % 2 == 0 and ends == [90.0, -90.0] and first == 0.0:
        grid: Grid | LatLonGrid = Grid(n_lat=n_lat, n_lon=n_lon)
    else:
        grid = LatLonGrid(
            n_lat=n_lat,
            n_lon=n_lon,
            first_lat=ends[0],
            last_lat=ends[1],
            first_lon=first,
            last_lon=None if goes_around else last,
        )
    for name, found, regular in (
        ("latitudes", latitudes, grid.latitudes()),
        ("longitudes", longitudes, grid.longitudes()),
    ):
        if not np.abs(found - regular).max() <= TOLERANCE:
            raise ValueError(f"the {name} are not evenly spaced")
    return grid
