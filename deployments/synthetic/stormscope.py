"""Synthetic StormScope, satellite, and interpolation to hours, for laptops and tests.

They have the coordinates and variables of the real ones, and are marked as synthetic. Nothing here
imports torch or Earth2Studio.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deployments.synthetic import clouds
from workflows.grids import LambertGrid
from workflows.stormscope import CONDITIONING_VARIABLE, VARIABLES

Floats = NDArray[np.float32]
Coords = OrderedDict[str, NDArray[Any]]

HOUR = np.timedelta64(1, "h")


class SyntheticInterpolation:
    """Linear interpolation of one variable between the steps of another model, to hours.

    Parameters
    ----------
    px_model : SyntheticFCN3
        Steps by 6 hours.

    Raises
    ------
    ValueError
        If the model is not synthetic: a linear interpolation of real forecasts is no forecast.
    """

    synthetic = True
    numpy_native = True
    weights = "none (synthetic)"

    def __init__(self, px_model: Any) -> None:
        if not getattr(px_model, "numpy_native", False):
            raise ValueError("the synthetic interpolation works only with the synthetic FCN3")
        self._model = px_model
        self._index = [str(name) for name in px_model.input_coords()["variable"]].index(
            CONDITIONING_VARIABLE
        )

    def to(self, device: Any) -> SyntheticInterpolation:
        """Return the model: there is nothing to move."""
        return self

    def input_coords(self) -> Coords:
        """Return the coordinates of the other model's state."""
        coords: Coords = self._model.input_coords()
        return coords

    def output_coords(self, input_coords: Coords) -> Coords:
        """Return the coordinates an hour later, without the south pole as in the real one."""
        coords = input_coords.copy()
        coords["lead_time"] = coords["lead_time"][-1:] + HOUR
        coords["variable"] = np.array([CONDITIONING_VARIABLE])
        coords["lat"] = self._model.input_coords()["lat"][:-1]
        return coords

    def create_iterator(self, x: Floats, coords: Coords) -> Iterator[tuple[Floats, Coords]]:
        """Return an iterator over hours; each hour overwrites the field of the previous one."""
        steps = self._model.create_iterator(x, coords)
        state, step_coords = next(steps)
        last = self._field(state)
        hour_coords = self.output_coords(step_coords)
        hour_coords["lead_time"] = step_coords["lead_time"].copy()
        yield last, hour_coords.copy()
        field = np.empty_like(last)
        for state, _ in steps:
            following = self._field(state)
            for hour in range(1, 7):
                field[...] = last + (following - last) * np.float32(hour / 6)
                hour_coords["lead_time"] = hour_coords["lead_time"] + HOUR
                yield field, hour_coords.copy()
            last = following

    def _field(self, state: Floats) -> Floats:
        return state[..., self._index : self._index + 1, :-1, :].copy()


class SyntheticGOES:
    """Images of a synthetic sky, with Earth2Studio's ``DataSource`` interface.

    Parameters
    ----------
    satellite : str
        Ignored: all satellites see the same.
    grid : LambertGrid
        Points of the images: the model's, so that nothing is regridded.
    """

    synthetic = True

    def __init__(self, satellite: str, grid: LambertGrid) -> None:
        self._sky = clouds.Sky(grid)

    def __call__(self, time: Any, variable: Any) -> xr.DataArray:
        """Return images, float32, dims (time, variable, y, x); NaN outside of the view."""
        times = np.atleast_1d(np.asarray(time, dtype="datetime64[ns]"))
        names = [str(name) for name in np.atleast_1d(np.asarray(variable))]
        unknown = [name for name in names if name not in VARIABLES]
        if unknown:
            raise ValueError(f"unknown variables: {', '.join(unknown)}")
        images = np.stack([self._image(valid, names) for valid in times])
        grid = self._sky.grid
        return xr.DataArray(
            images,
            dims=("time", "variable", "y", "x"),
            coords={
                "time": times,
                "variable": names,
                "lat": (("y", "x"), grid.latitudes()),
                "lon": (("y", "x"), grid.longitudes()),
            },
        )

    async def fetch(self, time: Any, variable: Any) -> xr.DataArray:
        """Return what calling the source returns."""
        return self(time, variable)

    def _image(self, time: np.datetime64, names: list[str]) -> Floats:
        channels = self._sky.channels(self._sky.cover(time), time)
        image = channels[[VARIABLES.index(name) for name in names]]
        return np.where(self._sky.in_view, image, np.float32(np.nan))


class SyntheticStormScope:
    """A synthetic nowcast with the interface of Earth2Studio's ``StormScopeGOES``.

    Clouds drift with the geostrophic wind of the conditioning field, and change at random as the
    seed determines.

    Parameters
    ----------
    device : str
        Ignored; part of the interface.
    """

    synthetic = True
    numpy_native = True
    """States are NumPy arrays, not torch tensors."""
    weights = "none (synthetic)"

    def __init__(self, device: str = "cpu", *, grid: LambertGrid | None = None) -> None:
        self._sky = clouds.Sky(grid or LambertGrid())
        grid = self._sky.grid
        self.variables = np.array(VARIABLES)
        self.conditioning_variables = np.array([CONDITIONING_VARIABLE])
        self.input_times = np.array([np.timedelta64(0, "h")])
        self.output_times = np.array([HOUR])
        self.y, self.x = grid.y(), grid.x()
        self.latitudes, self.longitudes = grid.latitudes(), grid.longitudes() % 360.0
        self.valid_mask = self._sky.in_view
        self._nearest: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None
        self.set_rng(0)

    def __str__(self) -> str:
        return "synthetic stormscope"

    def to(self, device: Any) -> SyntheticStormScope:
        """Return the model: there is nothing to move."""
        return self

    def set_rng(self, seed: int) -> None:
        """Start a sequence of random numbers."""
        self._rng = np.random.default_rng(seed)

    def input_coords(self) -> Coords:
        """Return the coordinates of a state."""
        return OrderedDict(
            batch=np.empty(0),
            time=np.empty(0),
            lead_time=self.input_times,
            variable=self.variables.copy(),
            y=self.y,
            x=self.x,
        )

    def build_conditioning_interpolator(self, latitudes: Any, longitudes: Any) -> None:
        """Find the nearest point of a regular grid for each point of the model."""
        lat, lon = np.asarray(latitudes), np.asarray(longitudes)
        row = np.rint((self.latitudes - lat[0]) / (lat[1] - lat[0])).astype(np.intp)
        column = np.rint((self.longitudes - lon[0]) / (lon[1] - lon[0])).astype(np.intp)
        self._nearest = np.clip(row, 0, lat.size - 1), column % lon.size

    def build_input_interpolator(self, latitudes: Any, longitudes: Any) -> None:
        """Raise ValueError: only images on the model's own grid are accepted."""
        raise ValueError("the synthetic StormScope accepts only images on its own grid")

    def prep_input(
        self, x: Floats, coords: Coords, conditioning: bool = False
    ) -> tuple[Floats, Coords]:
        """Return fields on the model's grid; zero outside of the satellite's view."""
        coords = coords.copy()
        if conditioning and "lat" in coords:
            if self._nearest is None:
                raise ValueError("call build_conditioning_interpolator first")
            x = x[..., self._nearest[0], self._nearest[1]]
            for name in ("lat", "lon"):
                del coords[name]
            coords |= {"y": self.y, "x": self.x}
        return np.where(self.valid_mask, x, np.float32(0)), coords

    def call_with_conditioning(
        self, x: Floats, coords: Coords, conditioning: Floats, conditioning_coords: Coords
    ) -> tuple[Floats, Coords]:
        """Return the state an hour later."""
        x, coords = self.prep_input(x, coords)
        field, _ = self.prep_input(conditioning, conditioning_coords, conditioning=True)
        coords = coords.copy()
        coords["lead_time"] = coords["lead_time"] + HOUR
        time = coords["time"][0] + coords["lead_time"][-1]
        cover = self._sky.cover_from(x[0, 0, 0, VARIABLES.index("abi13c")])
        moved = self._sky.drift(cover, field[0, 0, 0, 0])
        changed = np.clip(moved + self._sky.change(self._rng), 0, 1)
        channels = self._sky.channels(changed, time)
        state = np.where(self.valid_mask, channels, np.float32(np.nan))
        return state[None, None, None], coords

    def next_input(
        self, pred: Floats, pred_coords: Coords, x: Floats, x_coords: Coords
    ) -> tuple[Floats, Coords]:
        """Return the prediction as the next input."""
        return pred, pred_coords.copy()


def load_interpolation(device: str = "cpu", *, px_model: Any) -> SyntheticInterpolation:
    """Return the interpolation of the settings' ``loader: synthetic``."""
    return SyntheticInterpolation(px_model)


def load_goes(*, satellite: str, **grid: Any) -> SyntheticGOES:
    """Return the satellite of the settings' ``loader: synthetic``."""
    return SyntheticGOES(satellite, LambertGrid(**grid))


def load_stormscope(device: str = "cpu", **grid: Any) -> SyntheticStormScope:
    """Return the model of the settings' ``loader: synthetic``."""
    return SyntheticStormScope(device, grid=LambertGrid(**grid))
