"""The difference between members of a synthetic ensemble, and the drift of their weather."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deployments.synthetic import climate, weather
from deployments.synthetic.weather import Floats
from workflows.fcn3 import STEP_HOURS

STEP = np.timedelta64(STEP_HOURS, "h")
WAVENUMBERS = 8  # their number determines the cost of a step
_ONE_THREAD = 480_000  # multiplications; OpenBLAS uses a second thread from 2 x 262144


class Perturbation:
    """The perturbation of one seed.

    Parameters
    ----------
    seed, number : int
        Seed, and index of the state in a batch.
    shape : tuple of int
        Numbers of latitudes and longitudes.
    """

    def __init__(
        self, seed: int, number: int, variables: NDArray[np.str_], shape: tuple[int, ...]
    ) -> None:
        n_lat, n_lon = shape
        self._items = [climate.variable_named(str(name)) for name in variables]
        self._ground = climate.ground(n_lat, n_lon)
        m = np.arange(WAVENUMBERS)
        rng = np.random.default_rng([seed, number])
        # Two patterns that drift at different rates, so that the shape of their sum changes.
        self._rates = rng.uniform([[-0.5], [-1.2]], [[0.1], [-0.5]], (2, len(m)))  # rad/day
        patterns = []
        for _ in range(2):
            psi = weather.draw(rng, weather.wind_spectrum())[: len(m)]
            tracer = weather.draw(rng, weather.spectrum(peak=9.0, slope=-2.0))[: len(m)]
            waves = weather.harmonics(n_lat).waves(psi, tracer)
            patterns.append(np.stack([self._bounded(waves, item) for item in self._items]))
        # Shape (variable, lat, pattern x real or imaginary part x wavenumber).
        self._modes = np.concatenate([weather.as_real(pattern) for pattern in patterns], axis=-1)
        self._profiles = np.empty((*self._modes.shape[:2], 2 * len(m)), np.float32)
        self._basis = weather.longitude_basis(np.arange(n_lon) * 360.0 / n_lon, m)

    @staticmethod
    def _bounded(waves: weather.Waves, variable: climate.Variable) -> weather.Complex:
        profile = waves.profile(variable)
        if not variable.is_moisture:
            return profile
        # The sum of two patterns stays below 0.8 of the moisture.
        largest = float(np.abs(profile).sum(axis=-1).max())
        return np.asarray(profile * np.float32(0.4 / max(largest, 0.4)))

    def advance(self, initial: Floats, state: Floats, step: int, start: np.datetime64) -> None:
        """Write the state `step` steps after the initial one into `state`.

        Parameters
        ----------
        initial, state : ndarray, shape (variable, lat, lon)
        start : datetime64
            Valid time of `initial`.
        """
        days = float(step * STEP / np.timedelta64(1, "D"))
        n_lon = initial.shape[-1]
        # Relative to the start: on a coarse grid one step is less than a cell.
        shift = round(weather.DRIFT * days / 360.0 * n_lon) % n_lon
        growth = days**1.5 / (days**1.5 + 5.0**1.5)
        np.matmul(self._modes, self._rotation(days, growth), out=self._profiles)
        for item, profile, before, after in zip(
            self._items, self._profiles, initial, state, strict=True
        ):
            if item.is_moisture:
                profile[:, 0] += 1.0  # wavenumber 0: multiply by one plus the perturbation
            self._spread(profile, after)
            combine = np.multiply if item.is_moisture else np.add
            combine(after[:, shift:], before[:, : n_lon - shift], out=after[:, shift:])
            combine(after[:, :shift], before[:, n_lon - shift :], out=after[:, :shift])
            if item.is_moisture:
                np.maximum(after, 0.0, out=after)
            elif item.kind == "t2m":
                after += self._ground.temperature(start + step * STEP)
                after -= np.roll(self._ground.temperature(start), shift, axis=-1)

    def _spread(self, profile: Floats, field: Floats) -> None:
        """Multiply a profile by the basis, in blocks of rows.

        OpenBLAS uses several threads for large products, which gains little here and costs a lot
        where several replicas share the cores.
        """
        rank, n_lon = self._basis.shape
        rows = min(len(field), max(1, _ONE_THREAD // (rank * n_lon)))
        even = len(field) // rows * rows
        blocks = (even // rows, rows, -1)
        np.matmul(profile[:even].reshape(blocks), self._basis, out=field[:even].reshape(blocks))
        np.matmul(profile[even:], self._basis, out=field[even:])

    def _rotation(self, days: float, growth: float) -> Floats:
        """Return the matrix from modes to profiles, shape (4 wavenumber, 2 wavenumber)."""
        blocks = []
        for rates in self._rates:
            real, imaginary = np.diag(np.cos(rates * days)), np.diag(np.sin(rates * days))
            blocks.append(np.block([[real, imaginary], [-imaginary, real]]))
        return (growth * np.concatenate(blocks)).astype(np.float32)
