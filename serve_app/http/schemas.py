"""HTTP bodies: models for OpenAPI, and the functions that build the bodies.

Responses are built as plain dictionaries, for speed; tests validate them against the models.
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
    """A request to compute something."""

    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters of the workflow, see its schema. Missing ones take their defaults.",
    )


class SubmitBody(_Body):
    """An accepted request."""

    workflow_name: str
    execution_id: str
    status: Status = Field(
        description="queued, or a later status if an Idempotency-Key was replayed."
    )
    position: int | None = Field(description="Number of executions ahead of it in the queue.")
    message: str
    timestamp: datetime


class ProgressBody(_Body):
    """Progress of an execution."""

    progress: str
    current_step: int = Field(description="Completed time steps, over all members.")
    total_steps: int
    error_message: str | None
    members: list[int] = Field(description="Completed time steps, by member.")
    steps_per_member: int


class StatusBody(_Body):
    """One execution."""

    workflow_name: str
    execution_id: str
    status: Status
    stage: Stage | None = Field(description="Current stage, or the stage that failed.")
    position: int | None = Field(
        description="Number of executions ahead of it in the queue, while queued."
    )
    progress: ProgressBody | None
    start_time: datetime = Field(description="Time of acceptance; once it runs, time of its start.")
    end_time: datetime | None
    execution_time_seconds: float | None
    error_message: str | None
    metadata: dict[str, Any] = Field(description="parameters, and results_summary once finished.")
    revision: int = Field(
        description="Increases with every change; see the query parameter of the same name."
    )


class ListBody(_Body):
    """One page of executions, newest first."""

    executions: list[StatusBody]
    next: str | None = Field(description="Value of `before` for the next page.")


class WorkflowsBody(_Body):
    """Workflows and their descriptions."""

    workflows: dict[str, str]


class ErrorBody(_Body):
    """An error."""

    detail: Any


class FindingBody(_Body):
    """One problem with a request."""

    loc: list[str | int]
    msg: str
    type: str


class FindingsBody(_Body):
    """Problems with a request."""

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
    """The process is alive."""

    status: Literal["alive"]


def now() -> str:
    """Return the current time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat()


def status_body(execution: Execution, position: int | None) -> dict[str, Any]:
    """Return the status of an execution, see `StatusBody`."""
    progress = execution.progress
    metadata: dict[str, Any] = {"parameters": execution.parameters}
    results = execution.results
    if results is not None and execution.status in FINISHED:
        metadata["results_summary"] = {
            "output_files": results.output_files,
            "total_bytes": results.total_bytes,
            "storage_type": results.storage_type,
        }
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


def results_body(execution: Execution, manifest: Manifest) -> dict[str, Any]:
    """Return the results of an execution: its manifest and how it ended."""
    return {
        "request_id": execution.execution_id,
        "workflow_name": execution.workflow,
        "created_at": execution.created_at.isoformat(),
        "parameters": execution.parameters,
        **manifest.model_dump(mode="json"),
        "status": execution.status,
        "completion_time": execution.ended_at and execution.ended_at.isoformat(),
        "execution_time_seconds": _seconds(execution),
    }


def _seconds(execution: Execution) -> float | None:
    if execution.started_at is None or execution.ended_at is None:
        return None
    return (execution.ended_at - execution.started_at).total_seconds()
