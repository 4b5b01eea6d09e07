"""Options of the FCN3 and StormScope deployments."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from deployments.runtime.import_path import LoaderOptions
from workflows.grids import Grid, LambertGrid


class FCN3Options(BaseModel):
    """What an FCN3 replica needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loader: LoaderOptions
    grid: Grid
    input_variables: tuple[str, ...]
    window_steps: int
    """Steps that may be computed but not yet written."""
    checkpoint_steps: int | None = None
    """Steps after which a forecast's state is kept; None keeps none."""
    turns: Path | None = None
    """Folder of the locks by which models take turns on a GPU; None if each has its own."""
    interpolation: LoaderOptions | None = None
    """What makes its steps hourly; None if nothing is conditioned."""


class StormScopeOptions(BaseModel):
    """What a StormScope replica needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loader: LoaderOptions
    grid: LambertGrid
    conditioning_grid: Grid
    input_variables: tuple[str, ...]
    window_steps: int
    """Steps that may be computed but not yet written."""
    turns: Path | None = None
    """Folder of the locks by which models take turns on a GPU; None if each has its own."""
