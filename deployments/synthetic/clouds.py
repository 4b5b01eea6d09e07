"""Synthetic clouds on a map: their drift, and their look from a satellite."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workflows.grids import LambertGrid

Floats = NDArray[np.float32]
Array = NDArray[np.float64]

_SKY_SEED = 2512  # all images show the same sky
_WAVES = 48
_LONGITUDE = -75.2  # of GOES-East
_VIEW = 66.0  # degrees of arc from the subsatellite point to the edge of the usable image
_OMEGA, _SECONDS = 7.292e-5, 3600.0
_CLEAR, _CLOUDY = 292.0, 216.0  # K, at 10.3 um


class Sky:
    """Clouds as the share of the sky that they cover, on a grid."""

    def __init__(self, grid: LambertGrid) -> None:
        self.grid = grid
        self._lat, self._lon = grid.latitudes(), grid.longitudes()
        below = np.cos(np.radians(self._lat)) * np.cos(np.radians(self._lon - _LONGITUDE))
        self.in_view: NDArray[np.bool_] = below > np.cos(np.radians(_VIEW))
        """The points in the satellite's view, shape (y, x)."""
        self._rows = np.arange(grid.n_y, dtype=np.float64)[:, None]
        self._columns = np.arange(grid.n_x, dtype=np.float64)[None, :]

    def cover(self, time: np.datetime64) -> Floats:
        """Return the cloud cover of an analysis, shape (y, x), 0 to 1: waves that drift."""
        rng = np.random.default_rng(_SKY_SEED)
        seconds = float((time - np.datetime64("2000-01-01")) / np.timedelta64(1, "s"))
        y, x = self.grid.y(), self.grid.x()
        total, variance = np.zeros(self.grid.shape), 0.0
        for _ in range(_WAVES):
            length = 10 ** rng.uniform(5.2, 6.5)  # m
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            along = 2 * np.pi / length * np.array([np.sin(angle), np.cos(angle)])
            # Eastwards at 12 m/s; small waves change faster.
            rate = -12.0 * along[1] + rng.normal() * 2e-5 * (1e6 / length) ** 0.5
            phases = phase + rate * seconds
            # The wave as a product: exp(i (a + b)) = exp(i a) exp(i b).
            wave = np.exp(1j * (along[0] * y + phases))[:, None] * np.exp(1j * along[1] * x)
            total += wave.real * (length / 1e6) ** 0.5
            variance += length / 2e6
        return np.asarray(1 / (1 + np.exp(0.3 - 1.5 * total / variance**0.5)), np.float32)

    def cover_from(self, brightness: Floats) -> Floats:
        """Return the cloud cover for a brightness temperature at 10.3 um, K."""
        cover: Floats = np.clip((_CLEAR - brightness) / np.float32(_CLEAR - _CLOUDY), 0, 1)
        return cover

    def channels(self, cover: Floats, time: np.datetime64) -> Floats:
        """Return the channels of StormScope, shape (channel, y, x)."""
        sun = self._sun(time)
        brightness = _CLEAR - (_CLEAR - _CLOUDY) * cover
        humid = 1 - 0.6 * cover
        return np.stack(
            [
                sun * (0.12 + 0.68 * cover),
                sun * (0.08 + 0.76 * cover),
                sun * (0.22 + 0.62 * cover),
                brightness + 2 + 16 * sun * cover,
                214 + 28 * humid,
                222 + 32 * humid,
                230 + 34 * humid,
                brightness,
            ]
        ).astype(np.float32)

    def drift(self, cover: Floats, geopotential: Floats) -> Floats:
        """Return the cloud cover after an hour of geostrophic wind.

        Parameters
        ----------
        cover : ndarray, shape (y, x)
        geopotential : ndarray, shape (y, x)
            m2 s-2.
        """
        spacing, field = self.grid.spacing_m, geopotential.astype(np.float64)
        slope_y: Array = np.gradient(field, spacing, axis=0)
        slope_x: Array = np.gradient(field, spacing, axis=1)
        coriolis = 2 * _OMEGA * np.sin(np.radians(self._lat))
        steps = _SECONDS / self.grid.spacing_m / coriolis
        # Clipped: a field from a coarse grid has steep edges between its cells.
        north = np.clip(_smooth(slope_x) * steps, -30, 30)
        east = np.clip(-_smooth(slope_y) * steps, -30, 30)
        row = np.clip(self._rows - north, 0, self.grid.n_y - 1.001)
        column = np.clip(self._columns - east, 0, self.grid.n_x - 1.001)
        y, x = row.astype(np.intp), column.astype(np.intp)
        dy, dx = row - y, column - x
        upper = cover[y, x] * (1 - dx) + cover[y, x + 1] * dx
        lower = cover[y + 1, x] * (1 - dx) + cover[y + 1, x + 1] * dx
        return np.asarray(upper * (1 - dy) + lower * dy, np.float32)

    def change(self, rng: np.random.Generator) -> Floats:
        """Return a random, smooth change of the cloud cover within an hour, shape (y, x)."""
        n_y, n_x = (max(size // 24, 2) for size in self.grid.shape)
        coarse = 0.06 * rng.standard_normal((n_y, n_x))
        by_row = _interpolation_weights(n_y, self.grid.n_y)
        by_column = _interpolation_weights(n_x, self.grid.n_x)
        return np.asarray(by_row @ coarse @ by_column.T, np.float32)

    def _sun(self, time: np.datetime64) -> Array:
        """Return the cosine of the sun's zenith angle; zero at night."""
        days = float((time - np.datetime64("2000-01-01")) / np.timedelta64(1, "D"))
        declination = np.radians(-23.44 * np.cos(2 * np.pi * (days + 10) / 365.25))
        hour = np.radians(self._lon + 360.0 * (days % 1.0) - 180.0)
        latitude = np.radians(self._lat)
        height = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(
            declination
        ) * np.cos(hour)
        return np.asarray(np.maximum(height, 0.0))


def _interpolation_weights(n_coarse: int, n_fine: int) -> Array:
    """Return the weights of linear interpolation, shape (fine, coarse)."""
    at = np.linspace(0, n_coarse - 1, n_fine)
    weights: Array = np.maximum(1 - np.abs(at[:, None] - np.arange(n_coarse)), 0)
    return weights


def _smooth(field: Array) -> Array:
    """Return averages over 11 x 11 points."""
    for axis in (0, 1):
        width = min(11, field.shape[axis])
        total = np.cumsum(np.insert(field, 0, 0, axis=axis), axis=axis)
        low = np.clip(np.arange(field.shape[axis]) - width // 2, 0, None)
        high = np.clip(np.arange(field.shape[axis]) + width // 2 + 1, None, field.shape[axis])
        sums = np.take(total, high, axis=axis) - np.take(total, low, axis=axis)
        counts = (high - low)[:, None] if axis == 0 else (high - low)[None, :]
        field = sums / counts
    return field
