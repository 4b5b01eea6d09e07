"""Arguments and answers of CustomWorkflow's handle."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from workflows.custom import CustomPlan
from workflows.execution import Progress
from workflows.manifest import Manifest


class RunJob(BaseModel):
    """One execution to run."""

    model_config = ConfigDict(frozen=True)

    execution_id: str
    plan: CustomPlan
    fence: int
    """Fencing token of the Conductor."""


class Packaging(BaseModel):
    """The class has returned; its results are being described."""

    kind: Literal["packaging"] = "packaging"
    progress: Progress


class RunResult(BaseModel):
    """Results of a run."""

    kind: Literal["result"] = "result"
    progress: Progress
    results: Manifest
    shortcoming: str | None
    """How the results fall short of what the class requires; None if they do not."""
