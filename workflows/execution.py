"""The record of an execution, its states and stages, and the allowed changes of state."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from workflows.errors import IllegalTransition
from workflows.manifest import Manifest, ResultsSummary


class Status(StrEnum):
    """State of an execution; the values are those of Earth2Studio's serve module."""

    QUEUED = "queued"
    RUNNING = "running"
    PENDING_RESULTS = "pending_results"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Stage(StrEnum):
    """Stage that an execution has reached, or at which it failed."""

    INITIAL_CONDITIONS = "initial_conditions"
    INFERENCE = "inference"
    PACKAGE = "package"
    UPLOAD = "upload"
    REGISTER = "register"
    FINISH = "finish"

    def is_before(self, other: Stage) -> bool:
        """Return whether this stage precedes another."""
        order = list(Stage)
        return order.index(self) < order.index(other)


DELIVERING = frozenset({Stage.UPLOAD, Stage.REGISTER})
"""Stages in which the results are complete and available."""

FINISHED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED, Status.FAILED}),
    # Results that are described quickly are never reported as pending.
    Status.RUNNING: frozenset(
        {Status.PENDING_RESULTS, Status.COMPLETED, Status.FAILED, Status.CANCELLED}
    ),
    Status.PENDING_RESULTS: frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED}),
    Status.COMPLETED: frozenset({Status.EXPIRED}),
    Status.FAILED: frozenset({Status.QUEUED, Status.EXPIRED}),
    Status.CANCELLED: frozenset({Status.EXPIRED}),
    Status.EXPIRED: frozenset(),
}


def check_transition(current: Status, new: Status) -> None:
    """Raise IllegalTransition if `new` does not follow `current`; the same status is allowed."""
    if new != current and new not in TRANSITIONS[current]:
        raise IllegalTransition(f"an execution that is {current} cannot become {new}")


EXECUTION_ID = re.compile(r"exec_\d+_[0-9a-f]{8}")
"""Format of `new_execution_id`."""


def new_execution_id() -> str:
    """Return a new id, ``exec_<unix seconds>_<8 hex digits>``, as Earth2Studio's clients expect."""
    return f"exec_{int(datetime.now(UTC).timestamp())}_{secrets.token_hex(4)}"


class Progress(BaseModel):
    """Progress of an execution, overall and per ensemble member."""

    model_config = ConfigDict(frozen=True)

    message: str
    current_step: int = Field(ge=0)
    """Completed time steps of all members."""
    total_steps: int = Field(ge=0)
    members: tuple[int, ...] = ()
    """Completed time steps of each member."""
    steps_per_member: int = 0
    error_message: str | None = None
    """Error that a user's workflow reports although it continues."""


class Execution(BaseModel):
    """One run of a workflow, as stored."""

    model_config = ConfigDict(frozen=True)

    execution_id: str
    workflow: str
    status: Status
    stage: Stage | None = None
    parameters: dict[str, Any]
    """The request's parameters, validated, with defaults and drawn seeds."""
    plan: dict[str, Any]
    """A serialized `workflows.base.Plan` or `workflows.custom.CustomPlan`."""
    progress: Progress | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error_message: str | None = None
    cancel_requested: bool = False
    purge_requested: bool = False
    retries: int = 0
    results: ResultsSummary | None = None
    """What it delivers, in short; the store has the manifest."""
    revision: int = 0
    """Increases with every change; long polls wait for it."""

    @property
    def has_complete_members(self) -> bool:
        """Whether any ensemble member is computed and written."""
        progress = self.progress
        return progress is not None and progress.steps_per_member in progress.members

    @property
    def is_packaged(self) -> bool:
        """Whether its results are complete, except perhaps for their delivery."""
        return self.results is not None and (
            self.stage in DELIVERING or self.status == Status.COMPLETED
        )

    def manifest(self, results: Manifest, status: Status = Status.COMPLETED) -> Manifest:
        """Return the manifest of results that are complete now, with the data of this record."""
        ended = datetime.now(UTC)
        started = self.started_at or self.created_at
        return results.model_copy(
            update={
                "request_id": self.execution_id,
                "workflow_name": self.workflow,
                "status": str(status),
                "created_at": self.created_at,
                "completion_time": ended,
                "execution_time_seconds": (ended - started).total_seconds(),
                "parameters": self.parameters,
            }
        )
