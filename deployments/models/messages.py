"""Messages between the Conductor and replicas of models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from workflows.base import Plan

MAX_CALLS_PER_REPLICA = 2
"""Calls that a replica accepts: a member whose last steps are being written, and the next one."""


class MemberJob(BaseModel):
    """One ensemble member to compute."""

    model_config = ConfigDict(frozen=True)

    execution_id: str
    plan: Plan
    member: int
    initial_conditions: str
    """Path of a ``.npy`` file, float32, shape (variable, lat, lon)."""
    fence: int
    """Fencing token of the Conductor."""
    replica: str | None = None
    """Replica to which the call is routed; see `deployments.models.router`."""


class ConditioningJob(MemberJob):
    """One member of the ensemble that conditions the plan's nowcast.

    `member` is an index into the conditioning ensemble.
    """


class NowcastJob(MemberJob):
    """One ensemble member of a nowcast.

    `initial_conditions` names the satellite image, shape (variable, y, x). The coordinates of its
    points lie in a second file; see `deployments.initial_conditions.client.source_grid`.
    """

    all_conditioned: bool = False
    """Whether every field that conditions the member was written before the job was created."""


class MemberProgress(BaseModel):
    """Progress of one ensemble member."""

    model_config = ConfigDict(frozen=True)

    written: int
    """Time steps written."""
    first: int = 0
    """Time index of the first step that this attempt computed: 0, or the one after a checkpoint."""
    replica: str | None = None
    """Serve's id of the replica that computes the member."""
