"""The record of an execution: its states, its stages and the changes between them."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from workflows.errors import IllegalTransition
from workflows.manifest import Manifest


class Status(StrEnum):
    """What a client sees; the words are those of Earth2Studio's serve module."""

    QUEUED = "queued"
    RUNNING = "running"
    PENDING_RESULTS = "pending_results"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Stage(StrEnum):
    """Where inside its life an execution is, or where it failed."""

    INITIAL_CONDITIONS = "initial_conditions"
    INFERENCE = "inference"
    PACKAGE = "package"
    UPLOAD = "upload"
    REGISTER = "register"
    FINISH = "finish"

    def is_before(self, other: Stage) -> bool:
        """Say whether a life comes to this stage before it comes to another."""
        order = list(Stage)
        return order.index(self) < order.index(other)


DELIVERING = frozenset({Stage.UPLOAD, Stage.REGISTER})
"""Stages behind which results are whole, and can be had."""

FINISHED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED, Status.FAILED}),
    # Results that are described in no time leave no time to say that they are pending.
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
    """Refuse a state change that the life of an execution does not allow.

    Raises
    ------
    IllegalTransition
        If `new` does not follow `current`. Staying in a state is always allowed.
    """
    if new != current and new not in TRANSITIONS[current]:
        raise IllegalTransition(f"an execution that is {current} cannot become {new}")


EXECUTION_ID = re.compile(r"exec_\d+_[0-9a-f]{8}")
"""What `new_execution_id` gives."""


def new_execution_id() -> str:
    """Give a fresh id, ``exec_<unix seconds>_<8 hex digits>`` as clients of the peer expect."""
    return f"exec_{int(datetime.now(UTC).timestamp())}_{secrets.token_hex(4)}"


class Progress(BaseModel):
    """How far an execution is, overall and per ensemble member."""

    model_config = ConfigDict(frozen=True)

    message: str
    current_step: int = Field(ge=0)
    """Time steps finished, over all members."""
    total_steps: int = Field(ge=0)
    members: tuple[int, ...] = ()
    """Time steps finished, per member."""
    steps_per_member: int = 0
    error_message: str | None = None
    """What a user's workflow tells of an error that it goes on with."""


class Execution(BaseModel):
    """One run of a workflow, as stored."""

    model_config = ConfigDict(frozen=True)

    execution_id: str
    workflow: str
    status: Status
    stage: Stage | None = None
    parameters: dict[str, Any]
    """The request's parameters, validated, defaults and drawn seeds filled in."""
    plan: dict[str, Any]
    """The resolved work, a serialized `workflows.base.Plan`."""
    progress: Progress | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error_message: str | None = None
    cancel_requested: bool = False
    purge_requested: bool = False
    retries: int = 0
    """How often it was asked to go on after it had failed."""
    results: Manifest | None = None
    """What it delivers, once its results are described."""
    revision: int = 0
    """Rises with every change; what a long poll waits for."""

    @property
    def has_whole_members(self) -> bool:
        """Whether any ensemble member is computed and written."""
        told = self.progress
        return told is not None and told.steps_per_member in told.members

    @property
    def is_packaged(self) -> bool:
        """Whether its results are whole, and nothing but their delivery can be missing."""
        return self.results is not None and (
            self.stage in DELIVERING or self.status == Status.COMPLETED
        )

    def manifest(self, results: Manifest, status: Status = Status.COMPLETED) -> Manifest:
        """Return the manifest of results that are complete now, with what this record says."""
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
