"""Synthetic FCN3 and IFS, for laptops and tests: no weights and no downloads.

They have the coordinates and variables of the real ones, and are marked as synthetic. Nothing here
imports torch or Earth2Studio, which take most of a minute.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deployments.synthetic import climate, weather
from deployments.synthetic.perturbation import STEP, Perturbation
from deployments.synthetic.weather import Floats
from workflows.fcn3 import VARIABLES

Coords = OrderedDict[str, NDArray[Any]]
Times = datetime | Sequence[datetime] | NDArray[np.datetime64]
Names = str | Sequence[str] | NDArray[np.str_]

_WORLD_SEED = 2512  # all analyses show the same world
_FOUR_WEEKS = 2 * np.pi / 28.0  # rad/day


class SyntheticIFS:
    """Analyses of a synthetic world, with Earth2Studio's ``DataSource`` interface.

    Every field is a function of valid time, variable and coordinates alone.

    Parameters
    ----------
    n_lat, n_lon : int
        Size of the grid, from 90 to -90 degrees north and from 0 degrees east.
    """

    synthetic = True

    def __init__(self, n_lat: int = 721, n_lon: int = 1440) -> None:
        self.lat = np.linspace(90.0, -90.0, n_lat)
        self.lon = np.linspace(0.0, 360.0, n_lon, endpoint=False)

    def __call__(self, time: Times, variable: Names) -> xr.DataArray:
        """Return fields, float32, dims (time, variable, lat, lon); ValueError if one is unknown."""
        times = np.atleast_1d(np.asarray(time, dtype="datetime64[ns]"))
        names = [str(name) for name in np.atleast_1d(np.asarray(variable))]
        variables = [climate.variable_named(name) for name in names]
        fields = np.empty((len(times), len(names), len(self.lat), len(self.lon)), np.float32)
        for valid, of_time in zip(times, fields, strict=True):
            waves = self._waves(valid)
            means = climate.Climate(self.lat, valid)
            for item, field in zip(variables, of_time, strict=True):
                self._fill(field, item, waves, means, valid)
        return xr.DataArray(
            fields,
            dims=("time", "variable", "lat", "lon"),
            coords={"time": times, "variable": names, "lat": self.lat, "lon": self.lon},
        )

    async def fetch(self, time: Times, variable: Names) -> xr.DataArray:
        """Return what calling the source returns."""
        return self(time, variable)

    def _fill(
        self,
        field: Floats,
        variable: climate.Variable,
        waves: weather.Waves,
        means: climate.Climate,
        time: np.datetime64,
    ) -> None:
        field[:] = weather.on_longitudes(waves.profile(variable), field.shape[-1])
        mean = means.profile(variable).astype(np.float32)[:, None]
        if variable.is_moisture:
            weather.moisten(field, mean)
            return
        field += mean
        if variable.kind == "t2m":
            field += climate.ground(*field.shape).temperature(time)

    def _waves(self, time: np.datetime64) -> weather.Waves:
        """Return the waves of the world, which drift together and slowly change."""
        rng = np.random.default_rng(_WORLD_SEED)
        psi = weather.draw(rng, weather.wind_spectrum())
        tracer = weather.draw(rng, weather.spectrum(peak=9.0, slope=-2.0))
        degree = np.arange(weather.WAVENUMBERS + 1)
        # Small waves change faster than large ones.
        rates = rng.standard_normal(psi.shape) * _FOUR_WEEKS * (degree / 10.0) ** 0.7
        drift = np.radians(weather.DRIFT) * np.arange(weather.WAVENUMBERS + 1)[:, None]
        rotation = np.exp(-1j * (drift + rates) * climate.days_since_2000(time))
        return weather.harmonics(len(self.lat)).waves(psi * rotation, tracer * rotation)


class SyntheticFCN3:
    """A synthetic model with FCN3's coordinates and Earth2Studio's ``PrognosticModel`` interface.

    The state drifts eastward over fixed ground, and a perturbation that depends only on the seed
    grows: members diverge within days, up to the natural variability of weather.

    Parameters
    ----------
    device : str
        Ignored; part of the interface.
    n_lat, n_lon : int
        Size of the grid, as in `SyntheticIFS`.
    """

    synthetic = True
    numpy_native = True
    """States are NumPy arrays, not torch tensors."""
    weights = "none (synthetic)"

    def __init__(self, device: str = "cpu", *, n_lat: int = 721, n_lon: int = 1440) -> None:
        self.variables = np.array(VARIABLES)
        self._lat = np.linspace(90.0, -90.0, n_lat)
        self._lon = np.linspace(0.0, 360.0, n_lon, endpoint=False)
        self._seed = 333
        self._run = _Run(np.empty(0, np.float32), np.empty(0, "datetime64[ns]"), 0)

    def __str__(self) -> str:
        return "synthetic fcn3"

    def to(self, device: Any) -> SyntheticFCN3:
        """Return the model: there is nothing to move."""
        return self

    def set_rng(self, seed: int = 333, reset: bool = True) -> None:
        """Set the seed of iterators that are created from now on.

        Parameters
        ----------
        seed : int
            Not negative.
        reset : bool
            Ignored; part of the interface.
        """
        self._seed = seed

    def input_coords(self) -> Coords:
        """Return the coordinates of a state."""
        return OrderedDict(
            batch=np.empty(0),
            time=np.empty(0),
            lead_time=np.array([np.timedelta64(0, "h")]),
            variable=self.variables.copy(),
            lat=self._lat.copy(),
            lon=self._lon.copy(),
        )

    def output_coords(self, input_coords: Coords) -> Coords:
        """Return the coordinates of the next step; ValueError if these are not the model's."""
        for name, own in self.input_coords().items():
            given = input_coords.get(name)
            if name in ("variable", "lat", "lon") and not np.array_equal(np.asarray(given), own):
                raise ValueError(f"coordinate {name} is not the model's")
        coords = input_coords.copy()
        coords["lead_time"] = coords["lead_time"] + STEP
        return coords

    def internal_state(self) -> dict[str, NDArray[Any]]:
        """Return what the next step of the running iterator depends on."""
        run = self._run
        return {"initial": run.initial, "start": run.start, "step": np.array(run.step)}

    def set_internal_state(self, internal: Mapping[str, NDArray[Any]]) -> None:
        """Continue the running iterator from the state of another one."""
        run = self._run
        run.initial, run.start = internal["initial"], internal["start"]
        run.step = int(internal["step"])

    def __call__(self, x: Floats, coords: Coords) -> tuple[Floats, Coords]:
        """Return the state one step later."""
        steps = self.create_iterator(x, coords)
        next(steps)
        return next(steps)

    def create_iterator(self, x: Floats, coords: Coords) -> Iterator[tuple[Floats, Coords]]:
        """Return an endless iterator over time, from the initial conditions.

        Parameters
        ----------
        x : ndarray, shape (..., time, lead_time, variable, lat, lon)
            Referenced by the iterator, and never written to.
        coords : mapping
            One entry per dimension, in order, with one lead time.

        Returns
        -------
        iterator
            Yields state and coordinates. From the second on, the state is one array that each
            step overwrites.

        Raises
        ------
        ValueError
            If the coordinates are not the model's.
        """
        self.output_coords(coords)
        state = np.asarray(x, dtype=np.float32)
        if state.shape[-3:] != (len(self.variables), len(self._lat), len(self._lon)):
            raise ValueError(f"a state of shape {state.shape} does not fit its coordinates")
        return self._steps(state, coords.copy(), self._seed)

    def _steps(self, x: Floats, coords: Coords, seed: int) -> Iterator[tuple[Floats, Coords]]:
        run = self._run = _Run(x, coords["time"] + coords["lead_time"][0], 0)
        yield x, coords.copy()
        # The coordinates may name a batch dimension that the state does not have.
        time_axis = list(coords)[-x.ndim :].index("time")
        members = [
            (index, index[time_axis], Perturbation(seed, number, self.variables, x.shape[-2:]))
            for number, index in enumerate(np.ndindex(x.shape[:-3]))
        ]
        state = np.empty_like(x, order="C")
        while True:
            run.step += 1
            coords = self.output_coords(coords)
            for index, time, perturbation in members:
                perturbation.advance(run.initial[index], state[index], run.step, run.start[time])
            self._run = run
            yield state, coords.copy()


@dataclass
class _Run:
    """The progress of an iterator."""

    initial: Floats
    start: Any
    """Valid times of `initial`, as an array."""
    step: int


def load_ifs(*, n_lat: int = 721, n_lon: int = 1440) -> SyntheticIFS:
    """Return the data source of the settings' ``loader: synthetic``."""
    return SyntheticIFS(n_lat=n_lat, n_lon=n_lon)


def load_fcn3(device: str = "cpu", *, n_lat: int = 721, n_lon: int = 1440) -> SyntheticFCN3:
    """Return the model of the settings' ``loader: synthetic``."""
    return SyntheticFCN3(device, n_lat=n_lat, n_lon=n_lon)
