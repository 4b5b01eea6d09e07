"""Options of the FCN3 and StormScope deployments."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from deployments.runtime.import_path import LoaderOptions
from workflows.grids import Grid, LambertGrid


class FCN3Options(BaseModel):
    """Options of an FCN3 replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loader: LoaderOptions
    grid: Grid
    input_variables: tuple[str, ...]
    window_steps: int
    """Time steps that may be computed but not yet written."""
    checkpoint_steps: int | None = None
    """Time steps from one checkpoint of a forecast to the next; None writes none."""
    gpu_locks: Path | None = None
    """Folder of the GPU locks if models share a GPU; None if each has its own."""
    interpolation: LoaderOptions | None = None
    """Interpolates FCN3 to hourly steps; None if FCN3 conditions no other model."""


class StormScopeOptions(BaseModel):
    """Options of a StormScope replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loader: LoaderOptions
    grid: LambertGrid
    conditioning_grid: Grid
    input_variables: tuple[str, ...]
    window_steps: int
    """Time steps that may be computed but not yet written."""
    gpu_locks: Path | None = None
    """Folder of the GPU locks if models share a GPU; None if each has its own."""
