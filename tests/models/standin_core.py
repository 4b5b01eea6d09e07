"""A small core inside Earth2Studio's real FCN3 wrapper, with the state that makani's has.

For the settings' ``loader: "tests.models.standin_core:load"``. Like makani's `ModelWrapper` and
`Preprocessor2D`: the noise is a process in time, kept in a buffer; what it draws comes from a
generator of the preprocessor that goes on from call to call. Two iterators on one model, or a
generator that is not set anew, change every value.
"""

from __future__ import annotations

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

SHAPE = (len(VARIABLES), 721, 1440)


class Preprocessor(torch.nn.Module):
    """Owns the noise: one value for each variable and longitude."""

    state: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(SHAPE[0], 1, SHAPE[2]), persistent=False)
        self.set_rng()

    def set_rng(self, reset: bool = True, seed: int = 333) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        if reset:
            self.state.zero_()

    def get_internal_state(self, tensor: bool = False) -> Any:
        """Give the noise, or what the generators on CPU and GPU are in; there is none here."""
        return self.state.detach().clone() if tensor else (self._generator.get_state(), None)

    def set_internal_state(self, state: Any) -> None:
        """Set what is given: a tensor is the noise, a pair are the generators' states."""
        if isinstance(state, torch.Tensor):
            self.state.copy_(state)
        elif state[0] is not None:
            self._generator.set_state(state[0])

    def update_internal_state(self, replace_state: bool = False) -> None:
        drawn = torch.randn(self.state.shape, generator=self._generator).to(self.state.device)
        self.state.copy_(drawn if replace_state else 0.9 * self.state + 0.436 * drawn)


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.preprocessor = Preprocessor()
        self.memory = torch.nn.Parameter(torch.tensor(0.97))

    def forward(self, x: torch.Tensor, replace_state: bool) -> torch.Tensor:
        self.preprocessor.update_internal_state(replace_state=replace_state)
        return x.roll(1, -1).mul_(self.memory).add_(self.preprocessor.state)


class Core(torch.nn.Module):
    """What `load_model_package` gives: a step depends on state, noise and time."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Network()

    def set_rng(self, reset: bool = True, seed: int = 333) -> None:
        self.model.preprocessor.set_rng(reset=reset, seed=seed)

    def forward(
        self,
        x: torch.Tensor,
        time: Sequence[datetime],
        normalized_data: bool = True,
        replace_state: bool | None = None,
    ) -> torch.Tensor:
        (moment,) = time
        assert x.shape == (1, *SHAPE)
        assert not normalized_data
        # The angle of the sun is computed from an aware time.
        day = (moment - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() / 86400
        out: torch.Tensor = self.model(x, replace_state=bool(replace_state))
        return out.add_(float(np.sin(day)))


def load(device: str) -> Any:
    """Put the core into the real wrapper."""
    from earth2studio.models.px import FCN3

    model = FCN3(Core())
    model.to(device)
    model.eval()
    model.synthetic = True
    model.weights = "none (stand-in)"
    return model


class RandomSource:
    """Fields drawn for each variable and time, on FCN3's grid."""

    def __call__(self, time: np.ndarray[Any, Any], variable: Sequence[str]) -> xr.DataArray:
        grid = Grid()
        fields = np.empty((len(time), len(variable), *SHAPE[1:]), np.float32)
        for moment, of_time in zip(time, fields, strict=True):
            hours = int(moment.astype("datetime64[h]").astype(np.int64))
            for name, field in zip(variable, of_time, strict=True):
                rng = np.random.default_rng([zlib.crc32(name.encode()), hours])
                field[:] = np.outer(rng.standard_normal(721), rng.standard_normal(1440))
        return xr.DataArray(
            fields,
            dims=("time", "variable", "lat", "lon"),
            coords={
                "time": time,
                "variable": list(variable),
                "lat": grid.latitudes(),
                "lon": grid.longitudes(),
            },
        )


def load_source() -> RandomSource:
    return RandomSource()
