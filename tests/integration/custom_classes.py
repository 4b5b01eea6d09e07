"""Workflow classes as users write them, good and bad; served by import path."""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from earth2studio.serve.server import (
    Earth2Workflow,
    WorkflowParameters,
    WorkflowProgress,
    WorkflowRegistry,
)
from pydantic import AwareDatetime, HttpUrl

Behaviour = Literal[
    "normal",
    "raises",
    "raises_unprintable",
    "exits",
    "kills_process",
    "hangs",
    "writes_nothing",
    "all_nan",
    "one_nan",
    "incomplete",
    "region",
    "oversized",
]


class Scripted:
    """A class without a base class, whose behaviour is a parameter."""

    name = "scripted"
    description = "Behaves as requested"

    def __init__(self, gain: float = 1.0, journal: str = "") -> None:
        self.gain = gain
        self._journal = Path(journal)

    def __call__(
        self,
        io: Any,
        behaviour: Behaviour = "normal",
        n_steps: int = 4,
        step_s: float = 0.0,
        since: AwareDatetime | None = None,
        link: HttpUrl | None = None,
        required: bool = False,
        output_format: Literal["zarr", "netcdf4"] = "zarr",
    ) -> None:
        with self._journal.open("a") as journal:
            journal.write(f"{behaviour} {os.getpid()}\n")
        getattr(self, f"_{behaviour}", lambda: None)()
        if since is not None and since.utcoffset() != timedelta(hours=2):
            raise RuntimeError(f"the zone was lost: {since}")
        if behaviour == "writes_nothing":
            return
        coords = OrderedDict(
            time=np.array(["2025-01-01"], "datetime64[ns]"),
            lead_time=np.arange(n_steps) * np.timedelta64(6, "h"),
            lat=np.linspace(90, -90, 5),
            lon=np.arange(0.0, 360.0, 45.0),
        )
        if behaviour == "oversized":
            coords["lat"] = np.linspace(90, -90, 10**7)
        io.add_array(coords, ["t2m", "u10m"])
        self.required_variables = ["t2m"] if required else []
        if behaviour == "region":
            values = np.ones((1, 1, 5, 4), np.float32)
            half = xr.Dataset({"t2m": (tuple(coords), values)})
            region = {"time": slice(0, 1), "lead_time": slice(0, 1), "lat": slice(0, 5)}
            region["lon"] = slice(0, 4)
            half.to_zarr(str(io.store.root), region=region, consolidated=False, safe_chunks=False)
            return
        for step in range(n_steps if behaviour != "incomplete" else n_steps - 1):
            time.sleep(step_s)
            step_coords = {**coords, "lead_time": coords["lead_time"][step : step + 1]}
            fields = np.full((1, 1, 5, 8), self.gain * step, np.float32)
            empty = np.full_like(fields, np.nan)
            io.write(
                [
                    empty if behaviour in ("all_nan", "one_nan") else fields,
                    empty if behaviour == "all_nan" else fields,
                ],
                step_coords,
                ["t2m", "u10m"],
            )

    def _raises(self) -> None:
        raise RuntimeError("deliberate failure")

    def _raises_unprintable(self) -> None:
        raise RuntimeError("cannot read weights-\udcff\0.pt")

    def _exits(self) -> None:
        sys.exit(3)

    def _kills_process(self) -> None:
        os._exit(1)

    def _hangs(self) -> None:
        time.sleep(10**6)


@WorkflowRegistry.instance().register
class Reporting(Earth2Workflow):
    """A class on Earth2Studio's base class that uses all of its methods."""

    name = "reporting"
    description = "Validates, reports progress and writes further files"

    def __init__(self, limit: int = 5) -> None:
        super().__init__()
        self.limit = limit

    @classmethod
    def validate_parameters(
        cls, parameters: dict[str, Any] | WorkflowParameters
    ) -> WorkflowParameters:
        validated = super().validate_parameters(parameters)
        if validated.n_steps % 2:
            raise ValueError(f"n_steps must be even, not {validated.n_steps}")
        return validated

    def __call__(
        self,
        io: Any,
        start_time: list[datetime] = [datetime(2025, 1, 1)],  # noqa: B006
        n_steps: int = 2,
        output_format: Literal["zarr", "netcdf4"] = "netcdf4",
    ) -> None:
        import torch

        coords = OrderedDict(
            time=np.array(start_time, "datetime64[ns]"),
            lead_time=np.arange(n_steps) * np.timedelta64(1, "h"),
            lat=np.linspace(90, -90, 5),
            lon=np.arange(0.0, 360.0, 45.0),
        )
        io.add_array(coords, "z500")
        io.add_array({}, "crs")
        io.root["crs"].grid_mapping_name = "latitude_longitude"
        io.root["z500"].grid_mapping = "crs"
        for step in range(n_steps):
            step_coords = OrderedDict(coords)
            step_coords["lead_time"] = coords["lead_time"][step : step + 1]
            io.write(torch.full((len(start_time), 1, 5, 8), float(step)), step_coords, "z500")
            self.update_progress(
                WorkflowProgress(
                    progress=f"hour {step}", current_step=step + 1, total_steps=n_steps
                )
            )
            time.sleep(0.3)
        folder = self.get_output_path(self.execution_id)
        (folder / "notes").mkdir()
        (folder / "notes" / "tracks.txt").write_text("none found")
        os.symlink("/etc/hostname", folder / "outside")


class Unloadable:
    """A class whose constructor fails until a file exists."""

    name = "unloadable"
    description = "Cannot be loaded yet"

    def __init__(self, weights: str) -> None:
        self.weights = Path(weights).read_text()

    def __call__(self, io: Any) -> None:
        """Write the weights into a file."""
        (self.get_output_path() / "weights.txt").write_text(self.weights)
