"""Models and data sources with Earth2Studio's interface that need no weights, for tests."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

VARIABLES = ["t2m", "u10m", "v10m", "z500", "u500", "v500"]


def grid(factor: int = 1) -> OrderedDict[str, Any]:
    """Return a global grid of 10 degrees, or a finer one."""
    return OrderedDict(
        lat=np.linspace(90.0, -90.0, 18 * factor + 1),
        lon=np.linspace(0.0, 360.0, 36 * factor, endpoint=False),
    )


def persistence(history: int = 1, step_hours: int = 6) -> Any:
    """Return Earth2Studio's Persistence."""
    from earth2studio.models.px import Persistence

    return Persistence(VARIABLES, grid(), history, np.timedelta64(step_hours, "h"))


def random_source(factor: int = 1) -> RandomFields:
    """Return a data source of random fields."""
    return RandomFields(grid(factor))


class RandomFields:
    """Random fields that are the same whenever a time is requested, unlike Earth2Studio's."""

    def __init__(self, domain: OrderedDict[str, Any]) -> None:
        self._domain = domain

    def __call__(self, time: Any, variable: Any) -> xr.DataArray:
        times, names = np.atleast_1d(time), [str(name) for name in np.atleast_1d(variable)]
        shape = len(names), *map(len, self._domain.values())
        seeds = times.astype("datetime64[s]").astype(int)
        fields = [np.random.default_rng(seed).standard_normal(shape) for seed in seeds]
        coords = {"time": times, "variable": names, **self._domain}
        return xr.DataArray(np.array(fields), dims=tuple(coords), coords=coords)


def drawing(step_s: float = 0.0, journal: str = os.devnull) -> Any:
    """Return a model that draws from torch's and NumPy's global generators.

    Parameters
    ----------
    step_s : float
        Duration of a step.
    journal : str
        File that gets a line per step.
    """
    import torch

    class Drawing(torch.nn.Module):
        resumes_from_output = True

        def __init__(self) -> None:
            super().__init__()
            self._like = persistence()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def input_coords(self) -> Any:
            return self._like.input_coords()

        def output_coords(self, coords: Any) -> Any:
            return self._like.output_coords(coords)

        def create_iterator(self, x: Any, coords: Any) -> Iterator[Any]:
            coords = coords.copy()
            while True:
                yield x, coords.copy()
                time.sleep(step_s)
                with Path(journal).open("a") as file:
                    file.write("step\n")
                # In place, as FCN3 does.
                x += self.weight.detach() * torch.randn(x.shape) + np.random.standard_normal()
                coords["lead_time"] = coords["lead_time"] + np.timedelta64(6, "h")

    return Drawing()
