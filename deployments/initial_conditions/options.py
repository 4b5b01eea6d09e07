"""Options of the InitialConditions deployment."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from deployments.runtime.import_path import LoaderOptions
from deployments.runtime.option_types import Seconds


class SourceConfig(BaseModel):
    """What an operator configures for a data source, besides its loader."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: Seconds = Field(
        default=900.0, description="Time limit for fetching initial conditions, seconds."
    )


class SourceOptions(SourceConfig, LoaderOptions):
    """Options of a data source."""
