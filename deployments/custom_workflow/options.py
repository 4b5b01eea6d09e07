"""Options of a CustomWorkflow deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class CustomWorkflowOptions(BaseModel):
    """What a replica needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """By which the workflow is called."""
    name_is_given: bool
    """True if the settings name it; otherwise the class must have the same name."""
    path: str
    """``module:Class``."""
    config: dict[str, Any]
    results_dir: Path
    work_dir: Path
    max_output_bytes: int
    window_bytes: int
    """Bytes that may be computed but not yet written."""
    cancel_grace_s: float
    """Seconds that a run gets to stop after a cancel, before its process is ended."""
