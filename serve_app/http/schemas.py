"""HTTP bodies: how an execution is told to a client, and the models that OpenAPI shows.

Answers are built as plain dictionaries, for speed; tests hold them against the models.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from workflows.execution import FINISHED, Execution, Stage, Status
from workflows.manifest import Manifest


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SubmitRequest(_Body):
    """What to compute."""

    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters of the workflow, see its schema; what is left out gets a default.",
    )


class SubmitBody(_Body):
    """An accepted request."""

    workflow_name: str
    execution_id: str
    status: Status = Field(description="queued; further on if an Idempotency-Key was replayed.")
    position: int | None = Field(description="Executions ahead of it in the queue.")
    message: str
    timestamp: datetime


class ProgressBody(_Body):
    """How far an execution is."""

    progress: str
    current_step: int = Field(description="Time steps finished, over all members.")
    total_steps: int
    error_message: str | None
    members: list[int] = Field(description="Time steps finished, per member.")
    steps_per_member: int


class StatusBody(_Body):
    """One execution."""

    workflow_name: str
    execution_id: str
    status: Status
    stage: Stage | None = Field(description="Where inside its life it is, or where it failed.")
    position: int | None = Field(description="Executions ahead of it in the queue, while queued.")
    progress: ProgressBody | None
    start_time: datetime = Field(description="When it was accepted; once it runs, when it began.")
    end_time: datetime | None
    execution_time_seconds: float | None
    error_message: str | None
    metadata: dict[str, Any] = Field(description="parameters, and results_summary at the end.")
    revision: int = Field(description="Rises with every change; see the query of the same name.")


class ListBody(_Body):
    """One page of executions, newest first."""

    executions: list[StatusBody]
    next: str | None = Field(description="Value of `before` for the page that follows.")


class WorkflowsBody(_Body):
    """Workflows and what they do."""

    workflows: dict[str, str]


class ErrorBody(_Body):
    """Why a request was not answered."""

    detail: Any


class FindingBody(_Body):
    """One thing that is wrong with a request."""

    loc: list[str | int]
    msg: str
    type: str


class FindingsBody(_Body):
    """All that is wrong with a request."""

    detail: list[FindingBody]


class WorkflowReadiness(_Body):
    """Whether a workflow can run."""

    ready: bool
    reason: str | None


class HealthBody(_Body):
    """The server works."""

    status: Literal["healthy"]
    timestamp: datetime


class ReadinessBody(HealthBody):
    """Every exposed workflow can run."""

    workflows: dict[str, WorkflowReadiness]


class LivenessBody(_Body):
    """The process answers."""

    status: Literal["alive"]


def now() -> str:
    """Give the present time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat()


def status_body(execution: Execution, position: int | None) -> dict[str, Any]:
    """Tell an execution, as `StatusBody` describes it."""
    progress = execution.progress
    metadata: dict[str, Any] = {"parameters": execution.parameters}
    if execution.results is not None and execution.status in FINISHED:
        metadata["results_summary"] = _summary(execution.results)
    return {
        "workflow_name": execution.workflow,
        "execution_id": execution.execution_id,
        "status": execution.status,
        "stage": execution.stage,
        "position": position,
        "progress": progress
        and {
            "progress": progress.message,
            "current_step": progress.current_step,
            "total_steps": progress.total_steps,
            "error_message": execution.error_message or progress.error_message,
            "members": progress.members,
            "steps_per_member": progress.steps_per_member,
        },
        "start_time": (execution.started_at or execution.created_at).isoformat(),
        "end_time": execution.ended_at and execution.ended_at.isoformat(),
        "execution_time_seconds": _seconds(execution),
        "error_message": execution.error_message,
        "metadata": metadata,
        "revision": execution.revision,
    }


def results_body(execution: Execution) -> dict[str, Any]:
    """Return the results of an execution: its manifest and how it ended."""
    return {
        "request_id": execution.execution_id,
        "workflow_name": execution.workflow,
        "created_at": execution.created_at.isoformat(),
        "parameters": execution.parameters,
        **(execution.results or Manifest(output_files=())).model_dump(mode="json"),
        "status": execution.status,
        "completion_time": execution.ended_at and execution.ended_at.isoformat(),
        "execution_time_seconds": _seconds(execution),
    }


def _seconds(execution: Execution) -> float | None:
    if execution.started_at is None or execution.ended_at is None:
        return None
    return (execution.ended_at - execution.started_at).total_seconds()


def _summary(results: Manifest) -> dict[str, Any]:
    return {
        "output_files": len(results.output_files),
        "total_bytes": sum(file.size for file in results.output_files),
        "storage_type": results.storage_type,
    }
