"""Small cores inside Earth2Studio's real StormScope, InterpModAFNO and surface pressure.

As in the real ones, StormScope draws from torch's global generator at every step, and the
interpolation writes every hour into one buffer. A stray draw, a missed copy or a shared source of
conditioning changes every value.
"""

from __future__ import annotations

import time as clock
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from tests.models import standin_modules
from tests.models.standin_core import at_points
from workflows.grids import Grid, LambertGrid
from workflows.stormscope import VARIABLES

standin_modules.register()

GRID = LambertGrid(n_y=20, n_x=28, spacing_m=140_000, first_y_m=-1_330_000, first_x_m=-1_890_000)
LEVELS = [50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000]


class Interpolator(torch.nn.Module):
    """The core of `InterpModAFNO`: a blend of two states and a little of the solar angle."""

    def __init__(self) -> None:
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(0.01))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        first, second, sun = x[:, :73], x[:, 73:146], x[:, 148:149]
        return first + (second - first) * t + self.share * sun


class Denoiser(torch.nn.Module):
    """One of StormScope's cores, an expert for some noise levels."""

    def __init__(self, pull: float = 0.7, pause_s: float = 0.0) -> None:
        super().__init__()
        self.pause_s = pause_s
        self.pull = torch.nn.Parameter(torch.tensor(pull))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> Any:
        clock.sleep(self.pause_s)
        channels = x.shape[1]
        state, z500 = condition[:, :channels], condition[:, channels : channels + 1]
        target = torch.tanh(state.roll(1, -1) + 0.3 * z500 + 0.1 * condition[:, -1:])
        return target * self.pull + x / (1 + sigma.view(-1, 1, 1, 1) ** 2)


def network_of(path: str) -> torch.nn.Module:
    """Return the network that a checkpoint's name stands for."""
    return Interpolator() if "interp" in path else Denoiser()


def load_interpolation(device: str, px_model: Any) -> Any:
    """Return the real wrappers of the cores, around an FCN3 and on its grid."""
    from earth2studio.models.dx import DerivedSurfacePressure
    from earth2studio.models.px import DiagnosticWrapper, InterpModAFNO

    coords = px_model.input_coords()
    grid = Grid(n_lat=coords["lat"].size, n_lon=coords["lon"].size)

    class OnGrid(InterpModAFNO):
        def output_coords(self, input_coords: Any) -> Any:
            hourly = at_points(super().output_coords(input_coords), grid)
            return hourly | {"lat": grid.latitudes()[:-1]}

    pressure = DerivedSurfacePressure(
        p_levels=LEVELS,
        surface_geopotential=torch.zeros(grid.shape),
        surface_geopotential_coords=OrderedDict(lat=coords["lat"], lon=coords["lon"]),
    )
    hourly_shape = (grid.n_lat - 1, grid.n_lon)
    model = (InterpModAFNO if grid == Grid() else OnGrid)(
        Interpolator(),
        center=torch.zeros(1, 73, 1, 1),
        scale=torch.full((1, 73, 1, 1), 2.0),
        geop=torch.zeros(1, 1, *hourly_shape),
        lsm=torch.zeros(1, 1, *hourly_shape),
        px_model=DiagnosticWrapper(px_model=px_model, dx_model=pressure),
    )
    model.to(device)
    model.eval()
    model.synthetic = True
    return model


def load_stormscope(device: str, pause_s: float = 0.0) -> Any:
    """Return the real wrapper of two cores, which wait at each of seven evaluations a step."""
    from earth2studio.models.px.stormscope import StormScopeGOES

    n = len(VARIABLES)
    model = StormScopeGOES(
        [
            {"model": Denoiser(0.7, pause_s), "sigma_min": 0.1, "sigma_max": 5.0},
            {"model": Denoiser(0.5, pause_s), "sigma_min": 5.0, "sigma_max": 80.0},
        ],
        means=torch.linspace(0, 1, n).view(1, n, 1, 1),
        stds=torch.linspace(1, 2, n).view(1, n, 1, 1),
        latitudes=torch.as_tensor(GRID.latitudes(), dtype=torch.float32),
        longitudes=torch.as_tensor(GRID.longitudes() % 360.0, dtype=torch.float32),
        conditioning_means=torch.zeros(1, 1, 1, 1),
        conditioning_stds=torch.ones(1, 1, 1, 1),
        sampler_args={"num_steps": 4, "S_churn": 1},
        y_coords=GRID.y(),
        x_coords=GRID.x(),
        # Of coarse grids: for finer ones the nearest point is as close as they are.
        input_interp_max_dist_km=120.0,
        conditioning_interp_max_dist_km=260.0,
        amp=False,
    )
    model.to(device)
    model.eval()
    model.synthetic = True
    return model


class GOES:
    """Images like those of `PlanetaryComputerGOES`: their own grid, float64, a dark rim."""

    def __init__(self, satellite: str) -> None:
        self._satellite = satellite
        self.lat, self.lon = np.meshgrid(
            np.linspace(50, 15, 90), np.linspace(-130, -60, 120), indexing="ij"
        )
        # There the satellite looks past the Earth.
        self.lat[:20, :20] = self.lon[:20, :20] = np.nan

    def __call__(self, time: np.ndarray[Any, Any], variable: Sequence[str]) -> xr.DataArray:
        images = np.empty((len(time), len(variable), *self.lat.shape))
        for moment, of_time in zip(time, images, strict=True):
            hours = int(moment.astype("datetime64[h]").astype(np.int64))
            for name, image in zip(variable, of_time, strict=True):
                seed = [zlib.crc32(f"{self._satellite} {name}".encode()), hours]
                image[:] = np.random.default_rng(seed).standard_normal(self.lat.shape)
        images[..., np.isnan(self.lat)] = np.nan
        return xr.DataArray(
            images,
            dims=("time", "variable", "y", "x"),
            coords={
                "time": time,
                "variable": list(variable),
                "y": np.linspace(0.12, 0.04, self.lat.shape[0]),
                "x": np.linspace(-0.1, 0.04, self.lat.shape[1]),
                "_lat": (("y", "x"), self.lat),
                "_lon": (("y", "x"), self.lon),
            },
        )


class BrokenGOES(GOES):
    """A satellite with pixels missing in the middle of the region."""

    def __call__(self, time: np.ndarray[Any, Any], variable: Sequence[str]) -> xr.DataArray:
        images = super().__call__(time, variable)
        images[:, 1, 20:40, 60:70] = np.nan
        return images


def load_goes(satellite: str) -> GOES:
    return GOES(satellite)


def load_broken_goes(satellite: str) -> GOES:
    return BrokenGOES(satellite)


class Recorded:
    """Fields of a global forecast as a forecast source, as the peer passes them to StormScope."""

    def __init__(self, start: np.datetime64, fields: Sequence[Any], grid: Grid) -> None:
        self._start, self._fields, self._grid = start, fields, grid

    def __call__(self, time: Any, lead_time: Any, variable: Any) -> xr.DataArray:
        (moment,), (lead,) = time, lead_time
        hour = int((moment + lead - self._start) / np.timedelta64(1, "h"))
        return xr.DataArray(
            self._fields[hour][None, None, None],
            dims=("time", "lead_time", "variable", "lat", "lon"),
            coords={
                "time": list(time),
                "lead_time": list(lead_time),
                "variable": list(variable),
                "lat": self._grid.latitudes()[:-1],
                "lon": self._grid.longitudes(),
            },
        )
