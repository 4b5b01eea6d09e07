"""Models and a data source that take a set time for every step, and record when."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from deployments.synthetic.fcn3 import SyntheticFCN3, SyntheticIFS
from deployments.synthetic.stormscope import SyntheticInterpolation, SyntheticStormScope
from workflows.grids import LambertGrid


class Journal:
    """A file with a line for each step: model or source, process, start, end.

    Parameters
    ----------
    path : str
    model : str
    """

    def __init__(self, path: str, model: str) -> None:
        self._path = Path(path)
        self._model = model

    @contextmanager
    def step(self, seconds: float) -> Iterator[None]:
        """Sleep until a step has taken that time, including the work in the context; record it."""
        started = time.time()
        yield
        time.sleep(max(started + seconds - time.time(), 0))
        with self._path.open("a") as file:
            file.write(f"{self._model} {os.getpid()} {started} {time.time()}\n")


class SleepingFCN3(SyntheticFCN3):
    """Takes a set time for every step and no CPU time; the state does not change.

    A model on a GPU leaves the CPUs to the writers as well.
    """

    def __init__(self, step_s: float, journal: str, n_lat: int, n_lon: int) -> None:
        super().__init__(n_lat=n_lat, n_lon=n_lon)
        self._step_s = step_s
        self._journal = Journal(journal, "FCN3")

    def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
        """Step through time, slowly."""
        coords = coords.copy()
        yield x, coords
        while True:
            with self._journal.step(self._step_s):
                coords = self.output_coords(coords)
            yield x, coords


class SleepingIFS(SyntheticIFS):
    """Returns zeros after a set time."""

    def __init__(self, delay_s: float, journal: str, n_lat: int, n_lon: int) -> None:
        super().__init__(n_lat=n_lat, n_lon=n_lon)
        self._delay_s = delay_s
        self._journal = Journal(journal, "IFS")

    def __call__(self, time_: Any, variable: Any) -> Any:
        """Return fields, dims (time, variable, lat, lon)."""
        with self._journal.step(self._delay_s):
            shape = (1, len(variable), len(self.lat), len(self.lon))
            coords = {"variable": list(variable), "lat": self.lat, "lon": self.lon}
            dims = ("time", "variable", "lat", "lon")
            return xr.DataArray(np.zeros(shape, np.float32), dims=dims, coords=coords)


class SleepingInterpolation(SyntheticInterpolation):
    """Yields every hour, including the first, after a set time."""

    def __init__(self, px_model: Any, step_s: float, journal: str) -> None:
        super().__init__(px_model)
        self._step_s = step_s
        self._journal = Journal(journal, "FCN3")

    def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
        """Step through time by hours, slowly."""
        hours = super().create_iterator(x, coords)
        while True:
            with self._journal.step(self._step_s):
                hour = next(hours)
            yield hour


class SleepingStormScope(SyntheticStormScope):
    """Takes a set time for every step."""

    def __init__(self, grid: LambertGrid, step_s: float, journal: str) -> None:
        super().__init__(grid=grid)
        self._step_s = step_s
        self._journal = Journal(journal, "StormScope")

    def call_with_conditioning(self, *args: Any) -> Any:
        """Return the state an hour later, slowly."""
        with self._journal.step(self._step_s):
            return super().call_with_conditioning(*args)


def load_fcn3(device: str, *, step_s: float, journal: str, grid: dict[str, int]) -> Any:
    """Return the model, for ``models.fcn3.loader``."""
    return SleepingFCN3(step_s, journal, **grid)


def load_ifs(*, delay_s: float, journal: str, grid: dict[str, int]) -> Any:
    """Return the source, for ``data_sources.ifs.loader``."""
    return SleepingIFS(delay_s, journal, **grid)


def load_interpolation(device: str, *, px_model: Any, step_s: float, journal: str) -> Any:
    """Return the model, for ``models.interpolation.loader``."""
    return SleepingInterpolation(px_model, step_s, journal)


def load_stormscope(device: str, *, step_s: float, journal: str, grid: dict[str, Any]) -> Any:
    """Return the model, for ``models.stormscope.loader``."""
    return SleepingStormScope(LambertGrid(**grid), step_s, journal)
