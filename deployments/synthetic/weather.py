"""Synthetic weather: balanced waves of spherical harmonics on a zonal climate.

One streamfunction drives all variables, so that they are consistent: winds follow its gradient,
heights and pressure are lowest in cyclones on both hemispheres, and warm air moves ahead of the
lows. Everything is separable, (lat, k) @ (k, lon), so a global field is one matrix product of a few
milliseconds.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from deployments.synthetic.climate import Variable

Floats = NDArray[np.float32]
Array = NDArray[np.float64]
Complex = NDArray[np.complex64]

EARTH_RADIUS, OMEGA = 6.371e6, 7.292e-5
DRIFT = 10.0
"""Eastward drift of all waves, degrees per day."""
WAVENUMBERS = 80

# By pressure: eddy wind (m/s, root mean square over the storm tracks), eddy temperature (K), and
# westward tilt of the waves with height (degrees).
_LEVELS = np.log([50.0, 100.0, 200.0, 250.0, 300.0, 500.0, 700.0, 850.0, 1000.0])
_EDDY_WIND = (11.0, 14.0, 21.0, 24.0, 23.0, 16.0, 12.0, 10.0, 9.0)
_EDDY_TEMPERATURE = (-1.5, -2.0, -2.5, -0.5, 2.0, 3.5, 4.0, 4.5, 4.5)
_PSI_SCALE = 12.0  # streamfunction (Earth radii) to unit variance; the typical wavenumber
_TILT = (12.0, 12.0, 12.0, 12.0, 11.0, 8.0, 5.0, 2.0, 0.0)


class Waves:
    """Profiles of a streamfunction, and of the variables that balance it.

    A profile is complex, shape (lat, wavenumber). Its field is the real part of its sum over
    ``exp(i m lon)``. The scale is 1 m/s of wind, root mean square.

    Parameters
    ----------
    latitudes : ndarray, shape (lat,)
        Degrees north.
    wavenumbers : ndarray, shape (wavenumber,)
    psi, slope, tracer : ndarray, shape (lat, wavenumber)
        Streamfunction and its derivative by latitude, in Earth radii, and a second pattern for
        moisture, of unit variance.
    """

    def __init__(
        self,
        latitudes: Array,
        wavenumbers: NDArray[np.int_],
        psi: Complex,
        slope: Complex,
        tracer: Complex,
    ) -> None:
        self._m = wavenumbers
        self._cos = np.cos(np.radians(latitudes))[:, None]
        self._sin = np.sin(np.radians(latitudes))[:, None]
        self._psi, self._slope, self._tracer = psi, slope, tracer

    def profile(self, variable: Variable) -> Complex:
        """Return a variable's departure from its climate: relative for moisture, else absolute."""
        level = np.log(variable.pressure)
        wind = np.interp(level, _LEVELS, _EDDY_WIND) * variable.share
        tilt = float(np.interp(level, _LEVELS, _TILT))
        match variable.kind:
            case "u":
                field = -wind * self._slope
            case "v":
                field = wind * 1j * self._m * self._psi / self._cos
            case "z":
                field = wind * 2 * OMEGA * EARTH_RADIUS * self._sin * self._psi
            case "msl":
                field = 1.25 * wind * 2 * OMEGA * EARTH_RADIUS * self._sin * self._psi
            case "t" | "t2m":
                # Ridges are warm: high streamfunction in the north, low in the south.
                warm = np.interp(level, _LEVELS, _EDDY_TEMPERATURE) * (
                    0.7 if variable.kind == "t2m" else 1.0
                )
                field = warm * _PSI_SCALE * np.tanh(3.0 * self._sin) * self._psi
                tilt += 7.0
            case _:
                # Poleward winds are moist, and bands lean eastward towards the poles.
                poleward = 1j * self._m * self._psi / self._cos * np.tanh(3.0 * self._sin)
                field = 0.45 * poleward + (0.2 + 0.35 * self._sin**2) * self._tracer
                field = field * np.exp(-0.9j * self._m * self._sin**2)
        shifted: Complex = (field * np.exp(1j * np.radians(tilt) * self._m)).astype(np.complex64)
        return shifted


def moisten(departure: Floats, mean: Floats) -> None:
    """Convert a relative departure of moisture to moisture, in place.

    The result lies between 0 and 1.6 times the mean, since air saturates.
    """
    np.multiply(departure, -2.5, out=departure)
    np.exp(departure, out=departure)
    departure *= 0.6
    departure += 1.0
    np.divide(1.6 * mean, departure, out=departure)


class Harmonics:
    """Spherical harmonics with more weight on the storm tracks, at latitudes from 90 to -90."""

    def __init__(self, n_lat: int) -> None:
        self.latitudes = np.linspace(90.0, -90.0, n_lat)
        phi, h = np.radians(self.latitudes), 1e-4
        plain = _legendre(phi)
        north, south = (_legendre(phi + s * h) * _storm_tracks(phi + s * h) for s in (1, -1))
        self._psi = np.ascontiguousarray(plain * _storm_tracks(phi), dtype=np.float32)
        self._slope = np.ascontiguousarray((north - south) / (2 * h), dtype=np.float32)
        self._plain = np.ascontiguousarray(plain, dtype=np.float32)

    def waves(self, psi: NDArray[np.complex128], tracer: NDArray[np.complex128]) -> Waves:
        """Return the profiles of given coefficients.

        Parameters
        ----------
        psi, tracer : ndarray, shape (wavenumber, degree)
            Coefficients for wavenumbers from 0; missing wavenumbers count as zero.
        """
        m = np.arange(psi.shape[0])
        return Waves(
            self.latitudes,
            m,
            _sum(psi, self._psi),
            _sum(psi, self._slope),
            _sum(tracer, self._plain),
        )


@functools.lru_cache(maxsize=4)
def harmonics(n_lat: int) -> Harmonics:
    """Return the harmonics of a grid, computed once."""
    return Harmonics(n_lat)


def spectrum(peak: float, slope: float) -> Array:
    """Return the amplitudes of a red spectrum with unit variance, shape (degree,).

    Parameters
    ----------
    peak : float
        Degree with the most variance.
    slope : float
        Exponent of the variance beyond the peak, such as -3.
    """
    degree = np.arange(WAVENUMBERS + 1.0)
    power = degree**2 / (1 + (degree / peak) ** 2) ** (1 - slope / 2)
    # The highest degrees fade out: a sharp cut-off would ring.
    power *= np.exp(-((degree / (0.8 * WAVENUMBERS)) ** 8))
    # Each degree shares its variance among 2 l + 1 harmonics.
    return np.asarray(np.sqrt(power / power.sum() / (2 * degree + 1)))


def wind_spectrum() -> Array:
    """Return the amplitudes of a streamfunction (Earth radii) whose wind has unit variance."""
    degree = np.arange(WAVENUMBERS + 1.0)
    return spectrum(peak=11.0, slope=-3.0) / np.maximum(np.sqrt(degree * (degree + 1)), 1.0)


def draw(rng: np.random.Generator, amplitudes: Array) -> NDArray[np.complex128]:
    """Return random coefficients, shape (wavenumber, degree)."""
    shape = (WAVENUMBERS + 1, WAVENUMBERS + 1)
    drawn = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return np.asarray(np.triu(drawn) * amplitudes)


def longitude_basis(longitudes: Array, wavenumbers: NDArray[np.int_]) -> Floats:
    """Return ``cos m lon`` and ``-sin m lon``, shape (2 wavenumber, lon); see `as_real`."""
    angle = np.radians(longitudes)[None, :] * wavenumbers[:, None]
    return np.concatenate([np.cos(angle), -np.sin(angle)]).astype(np.float32)


def on_longitudes(profile: Complex, n_lon: int) -> Floats:
    """Return the field of a profile, shape (lat, lon), longitudes from 0 eastward."""
    # A grid that is too coarse for the waves is sampled from a finer one.
    finer = -(-2 * profile.shape[-1] // n_lon)
    halves = profile * np.where(np.arange(profile.shape[-1]) == 0, 1.0, 0.5).astype(np.float32)
    field = np.fft.irfft(halves, finer * n_lon, axis=-1, norm="forward")
    return np.asarray(field[:, ::finer], dtype=np.float32)


def as_real(profile: Complex) -> Floats:
    """Return real and imaginary parts side by side, shape (..., 2 wavenumber)."""
    return np.concatenate([profile.real, profile.imag], axis=-1).astype(np.float32, copy=False)


def _sum(coefficients: NDArray[np.complex128], basis: Floats) -> Complex:
    """Sum over the degree: (m, l), (m, l, lat) -> (lat, m)."""
    n = coefficients.shape[0]
    parts = np.stack([coefficients.real, coefficients.imag], axis=1).astype(np.float32)
    summed = parts @ basis[:n]  # (m, 2, lat)
    return np.asarray(summed[:, 0].T + 1j * summed[:, 1].T, dtype=np.complex64)


def _storm_tracks(phi: Array) -> Array:
    # Smooth across the poles, where derivatives use both sides.
    middle = np.abs(np.degrees(np.arcsin(np.sin(phi))))
    return np.asarray(0.35 + 1.25 * np.exp(-(((middle - 50.0) / 17.0) ** 2)))


def _legendre(phi: Array) -> Array:
    """Return associated Legendre functions, shape (m, l, lat).

    With exp(i m lon) they have unit mean square.

    References
    ----------
    Holmes & Featherstone 2002, Journal of Geodesy 76, eq. 11: the standard forward recursion by
    degree.
    """
    n = WAVENUMBERS + 1
    x, y = np.sin(phi), np.cos(phi)
    p = np.zeros((n, n, len(phi)))  # degree first during the recursion
    p[0, 0] = 1.0
    for m in range(1, n):
        p[m, m] = np.sqrt((2 * m + 1) / (2 * m)) * y * p[m - 1, m - 1]
    for degree in range(1, n):
        orders = np.arange(degree)
        a = np.sqrt((4 * degree**2 - 1) / (degree**2 - orders**2))
        p[degree, :degree] = a[:, None] * x * p[degree - 1, :degree]
        if degree > 1:
            b = np.sqrt(((degree - 1) ** 2 - orders**2) / (4 * (degree - 1) ** 2 - 1))
            p[degree, :degree] -= (a * b)[:, None] * p[degree - 2, :degree]
    return p.swapaxes(0, 1)
