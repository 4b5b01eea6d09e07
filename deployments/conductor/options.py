"""Options of the Conductor deployment."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RetentionOptions(BaseModel):
    """When what has ended is removed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_s: float | None = None
    """How long results stay after their execution's end; None is for ever."""
    keep_record_s: float | None = None
    """How long the record of an expired execution stays after that; None is for ever."""
    keep_failed_s: float = 86_400.0
    """How long the whole members of a failed execution stay for a retry."""
    look_s: float = 10.0
    """How often to look what expires."""
    sweep_s: float = 3600.0
    """How often to look what crashes have left; the first time is at the start."""
    grace_s: float = 900.0
    """How long after an execution's end what it has left counts as left by a crash."""


class ConductorOptions(BaseModel):
    """What the Conductor needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store_url: str
    max_running: dict[str, int]
    """Executions that run at once, by workflow."""
    replicas: dict[str, int] = {}
    """Replicas that each model has, or may get by autoscaling."""
    in_turn: bool = False
    """Whether models take turns on one GPU: what conditions a forecast is then computed first."""
    housekeeping: RetentionOptions = RetentionOptions()
    drain_s: float = 5.0
    """What running steps get to end in when another replica takes over."""
