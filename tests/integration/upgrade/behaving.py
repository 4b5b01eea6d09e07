"""The user's class of the data folder, see README.md."""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np


class Behaving:
    """Writes one small map per step."""

    name = "behaving"
    description = "Sleeps before every step"

    def __init__(self, journal: str) -> None:
        self._journal = Path(journal)

    def __call__(
        self,
        io: Any,
        n_steps: int = 4,
        step_s: float = 0.0,
        output_format: Literal["zarr", "netcdf4"] = "zarr",
    ) -> None:
        """Run it."""
        with self._journal.open("a") as journal:
            journal.write("run\n")
        coords = OrderedDict(
            time=np.array(["2025-01-01"], "datetime64[ns]"),
            lead_time=np.arange(n_steps) * np.timedelta64(6, "h"),
            lat=np.linspace(90, -90, 5),
            lon=np.arange(0.0, 360.0, 45.0),
        )
        io.add_array(coords, ["t2m"])
        for step in range(n_steps):
            time.sleep(step_s)
            lead_time = coords["lead_time"][step : step + 1]
            fields = np.full((1, 1, 5, 8), step, np.float32)
            io.write([fields], {**coords, "lead_time": lead_time}, ["t2m"])
