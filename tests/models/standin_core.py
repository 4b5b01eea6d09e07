"""A small core inside Earth2Studio's real FCN3 wrapper, with the state that makani's core has.

For ``loader: "tests.models.standin_core:load"`` in settings. As in makani's `ModelWrapper` and
`Preprocessor2D`, the noise is a process in time, kept in a buffer, and is drawn from a generator
of the preprocessor that advances with every call. Two iterators on one model, or a generator that
is not reset, change every value.
"""

from __future__ import annotations

import time as clock
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
import xarray as xr

from tests.models import standin_modules
from workflows.fcn3 import VARIABLES
from workflows.grids import Grid

standin_modules.register()


class Preprocessor(torch.nn.Module):
    """Owns the noise: one value for each variable and longitude."""

    state: torch.Tensor

    def __init__(self, n_lon: int) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(len(VARIABLES), 1, n_lon), persistent=False)
        self.set_rng()

    def set_rng(self, reset: bool = True, seed: int = 333) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        if reset:
            self.state.zero_()

    def get_internal_state(self, tensor: bool = False) -> Any:
        """Return the noise, or the states of the generators on CPU and GPU (None here)."""
        return self.state.detach().clone() if tensor else (self._generator.get_state(), None)

    def set_internal_state(self, state: Any) -> None:
        """Set the noise from a tensor, or the generators' states from a pair."""
        if isinstance(state, torch.Tensor):
            self.state.copy_(state)
        elif state[0] is not None:
            self._generator.set_state(state[0])

    def update_internal_state(self, replace_state: bool = False) -> None:
        drawn = torch.randn(self.state.shape, generator=self._generator).to(self.state.device)
        self.state.copy_(drawn if replace_state else 0.9 * self.state + 0.436 * drawn)


class Network(torch.nn.Module):
    def __init__(self, n_lon: int) -> None:
        super().__init__()
        self.preprocessor = Preprocessor(n_lon)
        self.memory = torch.nn.Parameter(torch.tensor(0.97))

    def forward(self, x: torch.Tensor, replace_state: bool) -> torch.Tensor:
        self.preprocessor.update_internal_state(replace_state=replace_state)
        return x.roll(1, -1).mul_(self.memory).add_(self.preprocessor.state)


class Core(torch.nn.Module):
    """Stands in for the result of `load_model_package`: a step depends on state, noise and time."""

    def __init__(self, grid: Grid, step_s: float = 0.0) -> None:
        super().__init__()
        self.step_s = step_s
        self.shape = (1, len(VARIABLES), *grid.shape)
        self.model = Network(grid.n_lon)

    def set_rng(self, reset: bool = True, seed: int = 333) -> None:
        self.model.preprocessor.set_rng(reset=reset, seed=seed)

    def forward(
        self,
        x: torch.Tensor,
        time: Sequence[datetime],
        normalized_data: bool = True,
        replace_state: bool | None = None,
    ) -> torch.Tensor:
        clock.sleep(self.step_s)
        (moment,) = time
        assert x.shape == self.shape
        assert not normalized_data
        # Fails for a naive time, as makani's computation of the solar angle does.
        day = (moment - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() / 86400
        out: torch.Tensor = self.model(x, replace_state=bool(replace_state))
        return out.add_(float(np.sin(day)))


def load(device: str, step_s: float = 0.0, **grid: int) -> Any:
    """Return the real wrapper around the core.

    Parameters
    ----------
    device : str
    step_s : float
        Seconds that a step waits.
    **grid
        Fields of `Grid`. The wrapper has its 721 x 1440 points written into its coordinates, and
        nothing else in it depends on them.
    """
    from earth2studio.models.px import FCN3

    points = Grid(**grid)

    class OnGrid(FCN3):
        def input_coords(self) -> Any:
            return at_points(super().input_coords(), points)

        def output_coords(self, input_coords: Any) -> Any:
            return at_points(super().output_coords(input_coords), points)

    model = (FCN3 if points == Grid() else OnGrid)(Core(points, step_s))
    model.to(device)
    model.eval()
    model.synthetic = True
    model.weights = "none (stand-in)"
    return model


def at_points(coords: Any, grid: Grid) -> Any:
    """Return coordinates with latitudes and longitudes of a grid."""
    return coords | {"lat": grid.latitudes(), "lon": grid.longitudes()}


class RandomSource:
    """Fields drawn for each variable and time, on FCN3's grid."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def __call__(self, time: np.ndarray[Any, Any], variable: Sequence[str]) -> xr.DataArray:
        lat, lon = self._grid.latitudes(), self._grid.longitudes()
        fields = np.empty((len(time), len(variable), *self._grid.shape), np.float32)
        for moment, of_time in zip(time, fields, strict=True):
            hours = int(moment.astype("datetime64[h]").astype(np.int64))
            for name, field in zip(variable, of_time, strict=True):
                rng = np.random.default_rng([zlib.crc32(name.encode()), hours])
                field[:] = np.outer(rng.standard_normal(lat.size), rng.standard_normal(lon.size))
        return xr.DataArray(
            fields,
            dims=("time", "variable", "lat", "lon"),
            coords={"time": time, "variable": list(variable), "lat": lat, "lon": lon},
        )


def load_source(**grid: int) -> RandomSource:
    return RandomSource(Grid(**grid))
