"""The climate of the synthetic world: zonal means, seasons, continents and sunlight."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.runtime.coastline import land_mask

Floats = NDArray[np.float32]
Array = NDArray[np.float64]

GRAVITY, R_DRY = 9.80665, 287.05

_SURFACE_WINDS = {"u10m": ("u", 0.7), "v10m": ("v", 0.7), "u100m": ("u", 0.9), "v100m": ("v", 0.9)}
_KINDS = "uvztq"

# Latitude, longitude, half-widths of both (degrees), and change of the 2 m temperature (K).
_HIGHLANDS = (
    (72.0, -41.0, 8.0, 12.0, -14.0),  # Greenland
    (33.0, 88.0, 5.0, 13.0, -16.0),  # Tibet
    (42.0, -110.0, 9.0, 6.0, -6.0),  # Rocky Mountains
    (-18.0, -68.0, 13.0, 3.0, -9.0),  # Andes
    (-80.0, 80.0, 11.0, 75.0, -20.0),  # East Antarctica
    (9.0, 39.0, 5.0, 4.0, -6.0),  # Ethiopia
)


@dataclass(frozen=True)
class Variable:
    """A variable as its name defines it."""

    kind: str
    """Quantity, such as ``u`` or ``t2m``."""
    pressure: float = 1000.0
    """hPa."""
    share: float = 1.0
    """Share of the wind at 1000 hPa that remains near the ground."""

    @property
    def is_moisture(self) -> bool:
        """Whether the variable is never negative, and varies in proportion to its mean."""
        return self.kind in ("q", "tcwv")


@functools.cache
def variable_named(name: str) -> Variable:
    """Return the variable of an Earth2Studio name, such as ``z500`` or ``u10m``.

    Raises ValueError if there is no synthetic field of that name.
    """
    if name in _SURFACE_WINDS:
        kind, share = _SURFACE_WINDS[name]
        return Variable(kind, share=share)
    if name in ("t2m", "msl", "tcwv"):
        return Variable(name)
    found = re.fullmatch(rf"([{_KINDS}])(\d{{1,4}})", name)
    if found is None or not 1 <= int(found[2]) <= 1000:
        raise ValueError(f"no synthetic field for variable {name!r}")
    return Variable(found[1], float(found[2]))


def days_since_2000(time: np.datetime64) -> float:
    """Return the days since 2000-01-01, with fractions."""
    return float((time - np.datetime64("2000-01-01T00", "s")) / np.timedelta64(1, "s")) / 86400.0


def season(time: np.datetime64) -> float:
    """Return the sun's declination relative to its maximum: 1 at the June solstice."""
    return float(np.sin(2 * np.pi * (days_since_2000(time) - 80.0) / 365.25))


class Climate:
    """Zonal means at some latitudes, degrees north, in the season of a time."""

    def __init__(self, latitudes: Array, time: np.datetime64) -> None:
        self._north = latitudes
        self._season = season(time)
        self._sin = np.sin(np.radians(latitudes))

    def profile(self, variable: Variable) -> Array:
        """Return the zonal mean of a variable, shape (lat,)."""
        match variable.kind:
            case "u":
                return variable.share * self._wind(variable.pressure)
            case "v":
                return np.zeros_like(self._north)
            case "z":
                levels = np.linspace(np.log(1000.0), np.log(variable.pressure), 33)
                mean = _integral(self._temperature(np.exp(levels)[:, None]), -levels)
                return (self._pressure() - 1e5) / 1.25 + R_DRY * mean
            case "t":
                return self._temperature(np.array([[variable.pressure]])).ravel()
            case "q":
                return self._humidity(np.array([[variable.pressure]])).ravel()
            case "t2m":
                return self._surface()
            case "msl":
                return self._pressure()
            case _:
                levels = np.linspace(100.0, 1000.0, 37)
                return _integral(self._humidity(levels[:, None]), levels * 100) / GRAVITY

    def _surface(self) -> Array:
        shifted = np.sin(np.radians(self._north - 5.0 * self._season)) ** 2
        warm = 300.5 - 27.0 * shifted - 17.0 * shifted**2
        warm -= 8.0 * _bump(self._north, -90.0, 20.0)
        return np.asarray(warm + 9.0 * self._season * self._sin * np.abs(self._sin))

    def _temperature(self, pressure: Array) -> Array:
        """Return temperature, K, shape (pressure, lat), of troposphere and stratosphere."""
        height = -7.4 * np.log(pressure / 1000.0)  # km
        below = self._surface() - (6.3 - 1.6 * self._sin**4) * height
        above = 194.0 + 24.0 * self._sin**2 + 1.2 * np.maximum(height - 15.0, 0.0)
        return np.asarray(4.0 * np.logaddexp(below / 4.0, above / 4.0))

    def _humidity(self, pressure: Array) -> Array:
        """Return specific humidity, shape (pressure, lat), from relative humidity.

        References
        ----------
        Bolton 1980, Monthly Weather Review 108, eq. 10.
        """
        celsius = self._temperature(pressure) - 273.15
        saturated = 0.622 * 6.112 * np.exp(17.67 * celsius / (celsius + 243.5)) / pressure
        rain_belt = 5.0 * self._season
        dry = np.exp(-(((np.abs(self._north - rain_belt) - 24.0) / 9.0) ** 2))
        relative = 0.82 * (pressure / 1000.0) ** 0.9 * (1.0 - 0.35 * dry)
        # Air that rose through the cold tropopause stays dry in the warmer stratosphere.
        freeze_dried = 2.6e-6 + 0.6 * (pressure / 1000.0) ** 6
        return np.asarray(np.minimum(relative * saturated, np.minimum(freeze_dried, 0.024)))

    def _pressure(self) -> Array:
        """Return mean sea level pressure, Pa: trough, subtropical highs, subpolar lows."""
        north = self._north
        highs = 850.0 * (_bump(north, 33, 12) + _bump(north, -31, 11))
        lows = -900.0 * _bump(north, 62, 11) - 2700.0 * _bump(north, -65, 11)
        return np.asarray(101150.0 + highs + lows + 500.0 * _bump(north, 90, 12))

    def _wind(self, pressure: float) -> Array:
        north = self._north
        winter = 0.35 * self._season
        aloft = float(
            np.interp(
                np.log(pressure),
                np.log([50.0, 100.0, 200.0, 500.0, 1000.0]),
                (0.35, 0.7, 1.0, 0.45, 0.0),
            )
        )
        jets = (1 - winter) * _bump(north, 33 + 6 * self._season, 10)
        jets = jets + (1 + winter) * _bump(north, -33 + 6 * self._season, 10)
        westerlies = 3.5 * _bump(north, 47, 10) + 7.0 * _bump(north, -50, 10)
        trades = -6.5 * (_bump(north, 14, 9) + _bump(north, -13, 9)) * (1 - 0.8 * aloft)
        return np.asarray(36.0 * aloft * jets + westerlies * (1 + aloft) + trades)


class Ground:
    """The part of the 2 m temperature that does not drift: sunlight and continents.

    Parameters
    ----------
    latitudes, longitudes : ndarray, shape (lat,) and (lon,)
        Degrees.
    """

    def __init__(self, latitudes: Array, longitudes: Array) -> None:
        self._longitudes = longitudes
        self._sin = np.sin(np.radians(latitudes))
        self._cos = np.cos(np.radians(latitudes))
        self._land = _smooth_land(latitudes, longitudes)
        self._daily = ((0.3 + 4.7 * self._land) * self._cos[:, None]).astype(np.float32)
        highlands = np.zeros_like(self._land)
        for north, east, half_lat, half_lon, kelvin in _HIGHLANDS:
            away = (longitudes - east + 180.0) % 360.0 - 180.0
            highlands += kelvin * np.outer(
                _bump(latitudes, north, half_lat), np.exp(-((away / half_lon) ** 2))
            )
        self._highlands = (highlands * self._land).astype(np.float32)

    def temperature(self, time: np.datetime64) -> Floats:
        """Return the departure from the zonal mean, K, shape (lat, lon)."""
        noon = 180.0 - 360.0 * (days_since_2000(time) % 1.0)
        # The warmest hour is two hours after noon.
        hour = np.cos(np.radians(self._longitudes - noon - 30.0)).astype(np.float32)
        summer = 13.0 * season(time) * self._sin * np.abs(self._sin) + 2.0 * self._cos**4
        departure = summer.astype(np.float32)[:, None] * self._land
        departure += self._highlands
        departure += self._daily * hour
        return np.asarray(departure)


@functools.lru_cache(maxsize=4)
def ground(n_lat: int, n_lon: int) -> Ground:
    """Return the ground of a grid, computed once."""
    return Ground(np.linspace(90.0, -90.0, n_lat), np.linspace(0.0, 360.0, n_lon, endpoint=False))


def _smooth_land(latitudes: Array, longitudes: Array) -> Floats:
    """Return the share of land within about one degree, shape (lat, lon)."""
    share = np.zeros((len(latitudes), len(longitudes)), dtype=np.float32)
    for north in (-0.6, 0.0, 0.6):
        for east in (-0.6, 0.0, 0.6):
            share += land_mask(np.clip(latitudes + north, -89.9, 89.9), longitudes + east)
    return np.asarray(share / 9, dtype=np.float32)


def _bump(north: Array, centre: float, half_width: float) -> Array:
    return np.asarray(np.exp(-(((north - centre) / half_width) ** 2)))


def _integral(values: Array, along: Array) -> Array:
    """Integrate values of shape (level, lat) along (level,) by the trapezoidal rule."""
    return np.asarray(np.diff(along) @ (values[1:] + values[:-1]) / 2)
