"""Options of a CustomWorkflow deployment."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from deployments.results.options import StorageOptions
from deployments.runtime.option_types import Count, ImportPath, Seconds


class CustomWorkflowConfig(BaseModel):
    """What an operator configures for a user's workflow class."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    path: ImportPath = Field(
        alias="class",
        description='"module:Class", with the interface of Earth2Studio\'s Earth2Workflow.',
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the class's constructor."
    )
    window_mb: Count = Field(
        default=256,
        description="Output that may be computed but not yet written, in 10^6 bytes. More needs "
        "more memory.",
    )
    cancel_grace_s: Seconds = Field(
        default=15.0,
        description="Seconds that a run has to stop after a cancel, before its process is killed.",
    )


class CustomWorkflowOptions(CustomWorkflowConfig):
    """Options of a CustomWorkflow replica."""

    name: str
    name_is_given: bool
    """Whether the settings name it; otherwise the class must have the same name."""
    storage: StorageOptions
    max_output_bytes: int
