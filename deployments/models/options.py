"""Options of the deployments of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from deployments.runtime.import_path import LoaderOptions
from deployments.runtime.option_types import Count
from workflows.base import Component
from workflows.grids import Grid, LambertGrid


class WindowConfig(BaseModel):
    """How far a model may be ahead of the Packager."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_steps: Annotated[Count, Field(le=1000)] = Field(
        default=4,
        description="Time steps of a member that may be computed but not yet written. More needs "
        "more memory.",
    )


class ModelConfig(BaseModel):
    """What an operator configures for a model, besides its loader."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint_steps: Count | None = Field(
        default=60,
        description="Time steps from one checkpoint of a member to the next. An interrupted member "
        "resumes from its last checkpoint. Null writes none: the member starts again.",
    )


class ModelOptions(ModelConfig, WindowConfig):
    """Options of a replica of a model."""

    loader: LoaderOptions
    gpu_locks: Path | None = None
    """Folder of the GPU locks if models share a GPU; None if each has its own."""
    idle_unload_s: float | None = None
    """Seconds without work after which the model leaves the GPU; None keeps it there."""
    stochastic: bool | None = None
    """Whether the model draws random numbers of its own; None if that is known of its class."""
    diagnostics: dict[str, tuple[LoaderOptions, ...]] = {}
    """Diagnostics of each forecast workflow."""
    perturbations: tuple[Component, ...] = ()
    """Perturbations of the workflows; a failure to create one shows at the start."""


class FCN3Config(ModelConfig):
    """What an operator configures for FCN3, besides its loader."""

    grid: Grid = Field(default=Grid(), description="Grid of the model.")


class FCN3Options(FCN3Config, ModelOptions):
    """Options of an FCN3 replica."""

    interpolation: LoaderOptions | None = None
    """Interpolates FCN3 to hourly steps; None if FCN3 conditions no other model."""


class StormScopeConfig(BaseModel):
    """What an operator configures for StormScope, besides its loader."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: LambertGrid = Field(
        default=LambertGrid(), description="Grid of the model, on HRRR's Lambert map."
    )


class StormScopeOptions(StormScopeConfig, WindowConfig):
    """Options of a StormScope replica."""

    loader: LoaderOptions
    conditioning_grid: Grid
    gpu_locks: Path | None = None
    """Folder of the GPU locks if models share a GPU; None if each has its own."""
