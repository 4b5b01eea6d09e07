"""A coarse coastline of the world, for orientation on maps and for the synthetic climate."""

from __future__ import annotations

import functools
import json
from importlib import resources

import numpy as np
from numpy.typing import NDArray


@functools.cache
def coastline() -> tuple[NDArray[np.float64], ...]:
    """Return the coastline as closed rings.

    Returns
    -------
    tuple of ndarray, shape (point, 2)
        Degrees east in [-180, 180], and degrees north. The Caspian Sea is a ring inside Eurasia's.

    References
    ----------
    Natural Earth 1:110m land, public domain, https://www.naturalearthdata.com; thinned to 0.55
    degrees, without the smallest islands.
    """
    text = resources.files(__package__).joinpath("coastline.geojson").read_text()
    return tuple(np.array(ring, dtype=float) for ring in json.loads(text)["coordinates"])


def land_mask(latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points of a grid are on land.

    Parameters
    ----------
    latitudes : ndarray, shape (lat,)
        Degrees north.
    longitudes : ndarray, shape (lon,)
        Degrees east, any range.

    Returns
    -------
    ndarray, shape (lat, lon)
    """
    east = (np.asarray(longitudes) + 180.0) % 360.0 - 180.0
    segments = np.concatenate([np.hstack([ring[:-1], ring[1:]]) for ring in coastline()])
    x0, y0, x1, y1 = segments.T
    inside = np.empty((len(latitudes), len(east)), dtype=bool)
    for row, north in enumerate(latitudes):
        # Even-odd rule along the parallel: count the crossings west of each point.
        crossed = (y0 > north) != (y1 > north)
        x, y = x0[crossed], y0[crossed]
        west = np.sort(x + (north - y) * (x1[crossed] - x) / (y1[crossed] - y))
        inside[row] = np.searchsorted(west, east) % 2 == 1
    return inside
