"""Weight-free stand-ins for a model and its data source, for laptops and tests.

They have the coordinates and variables of the real ones, and say of themselves that they are
synthetic. Nothing here imports torch or Earth2Studio, which take most of a minute.
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

_WORLD_SEED = 2512  # of the one synthetic world that every analysis shows
_FOUR_WEEKS = 2 * np.pi / 28.0  # rad/day


class SyntheticIFS:
    """Analyses of a made-up world, with Earth2Studio's ``DataSource`` interface.

    Every field is a function of valid time, variable and coordinates alone.

    Parameters
    ----------
    n_lat, n_lon : int
        Grid, from 90 to -90 degrees north and from 0 degrees east.
    """

    synthetic = True

    def __init__(self, n_lat: int = 721, n_lon: int = 1440) -> None:
        self.lat = np.linspace(90.0, -90.0, n_lat)
        self.lon = np.linspace(0.0, 360.0, n_lon, endpoint=False)

    def __call__(self, time: Times, variable: Names) -> xr.DataArray:
        """Give fields, float32, dims (time, variable, lat, lon).

        Raises
        ------
        ValueError
            If a variable is unknown.
        """
        times = np.atleast_1d(np.asarray(time, dtype="datetime64[ns]"))
        names = [str(name) for name in np.atleast_1d(np.asarray(variable))]
        wanted = [climate.variable_named(name) for name in names]
        fields = np.empty((len(times), len(names), len(self.lat), len(self.lon)), np.float32)
        for moment, of_time in zip(times, fields, strict=True):
            waves = self._waves(moment)
            means = climate.Climate(self.lat, moment)
            for item, field in zip(wanted, of_time, strict=True):
                self._fill(field, item, waves, means, moment)
        return xr.DataArray(
            fields,
            dims=("time", "variable", "lat", "lon"),
            coords={"time": times, "variable": names, "lat": self.lat, "lon": self.lon},
        )

    async def fetch(self, time: Times, variable: Names) -> xr.DataArray:
        """Give what calling the source gives."""
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
        """Give the world's waves: they drift together, and slowly change while they do."""
        rng = np.random.default_rng(_WORLD_SEED)
        psi = weather.draw(rng, weather.wind_spectrum())
        tracer = weather.draw(rng, weather.spectrum(peak=9.0, slope=-2.0))
        degree = np.arange(weather.WAVENUMBERS + 1)
        # Small waves change sooner than large ones.
        rates = rng.standard_normal(psi.shape) * _FOUR_WEEKS * (degree / 10.0) ** 0.7
        drift = np.radians(weather.DRIFT) * np.arange(weather.WAVENUMBERS + 1)[:, None]
        turned = np.exp(-1j * (drift + rates) * climate.days_since_2000(time))
        return weather.harmonics(len(self.lat)).waves(psi * turned, tracer * turned)


class SyntheticFCN3:
    """A made-up model with FCN3's coordinates and Earth2Studio's ``PrognosticModel`` interface.

    The state drifts eastwards, the ground stays, and a disturbance that depends on the seed alone
    grows upon it: members part within days and stay apart as far as weather differs.

    Parameters
    ----------
    device : str
        Taken for the interface; there is nothing to move.
    n_lat, n_lon : int
        Grid, as in `SyntheticIFS`.
    """

    synthetic = True
    numpy_native = True
    """States are numpy arrays, not torch tensors."""
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
        """Stay where it is."""
        return self

    def set_rng(self, seed: int = 333, reset: bool = True) -> None:
        """Set the seed of the iterators that are made from now on.

        Parameters
        ----------
        seed : int
            Not negative.
        reset : bool
            Taken for the interface: there is no state that could go on.
        """
        self._seed = seed

    def input_coords(self) -> Coords:
        """Give the coordinates of a state."""
        return OrderedDict(
            batch=np.empty(0),
            time=np.empty(0),
            lead_time=np.array([np.timedelta64(0, "h")]),
            variable=self.variables.copy(),
            lat=self._lat.copy(),
            lon=self._lon.copy(),
        )

    def output_coords(self, input_coords: Coords) -> Coords:
        """Give the coordinates one step after others.

        Raises
        ------
        ValueError
            If variables or grid are not the model's.
        """
        for name, own in self.input_coords().items():
            given = input_coords.get(name)
            if name in ("variable", "lat", "lon") and not np.array_equal(np.asarray(given), own):
                raise ValueError(f"coordinate {name} is not the model's")
        coords = input_coords.copy()
        coords["lead_time"] = coords["lead_time"] + STEP
        return coords

    def internal_state(self) -> dict[str, NDArray[Any]]:
        """Give what the next step of the running iterator depends on."""
        run = self._run
        return {"initial": run.initial, "start": run.start, "step": np.array(run.step)}

    def set_internal_state(self, kept: Mapping[str, NDArray[Any]]) -> None:
        """Let the running iterator go on where another one was."""
        run = self._run
        run.initial, run.start, run.step = kept["initial"], kept["start"], int(kept["step"])

    def __call__(self, x: Floats, coords: Coords) -> tuple[Floats, Coords]:
        """Give the state one step later."""
        steps = self.create_iterator(x, coords)
        next(steps)
        return next(steps)

    def create_iterator(self, x: Floats, coords: Coords) -> Iterator[tuple[Floats, Coords]]:
        """Step through time, for ever; the first yield is the initial condition.

        Parameters
        ----------
        x : ndarray, shape (..., time, lead_time, variable, lat, lon)
            Kept until the iterator is gone, and never written to.
        coords : mapping
            One entry per dimension, in order. There is one lead time.

        Returns
        -------
        iterator
            Of state and coordinates. From the second on the state is one array, overwritten at
            each step: copy what shall stay.

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
        # A batch dimension may be named without being there.
        time_axis = list(coords)[-x.ndim :].index("time")
        members = [
            (place, place[time_axis], Perturbation(seed, number, self.variables, x.shape[-2:]))
            for number, place in enumerate(np.ndindex(x.shape[:-3]))
        ]
        state = np.empty_like(x, order="C")
        while True:
            run.step += 1
            coords = self.output_coords(coords)
            for place, time, disturbance in members:
                disturbance.advance(run.initial[place], state[place], run.step, run.start[time])
            self._run = run
            yield state, coords.copy()


@dataclass
class _Run:
    """How far an iterator is."""

    initial: Floats
    start: Any
    """Valid times, as an array."""
    step: int


def load_ifs(*, n_lat: int = 721, n_lon: int = 1440) -> SyntheticIFS:
    """Load the synthetic data source, for the settings' ``loader: synthetic``."""
    return SyntheticIFS(n_lat=n_lat, n_lon=n_lon)


def load_fcn3(device: str = "cpu", *, n_lat: int = 721, n_lon: int = 1440) -> SyntheticFCN3:
    """Load the synthetic model, for the settings' ``loader: synthetic``."""
    return SyntheticFCN3(device, n_lat=n_lat, n_lon=n_lon)
