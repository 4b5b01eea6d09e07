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
    """Token of the Conductor that asks for the run."""


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
    """Why the results are not what was announced; None if they are."""
