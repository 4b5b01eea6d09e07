"""Options of the Conductor."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RetentionOptions(BaseModel):
    """How long finished executions and their files are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_s: float | None = None
    """How long results are kept after their execution has ended; None keeps them forever."""
    keep_record_s: float | None = None
    """How long the record of an expired execution is kept after that; None keeps it forever."""
    keep_failed_s: float = 86_400.0
    """How long the completed members of a failed execution are kept for a retry."""
    look_s: float = 10.0
    """Seconds between two searches for expired executions."""
    sweep_s: float = 3600.0
    """Seconds between two searches for leftovers of crashes; the first is at startup."""
    settle_s: float = 3600.0
    """How long the wall clock must run steadily before anything is removed for its age. Less for
    what is kept for less."""
    grace_s: float = 900.0
    """How long after an execution's end its files are not yet leftovers."""


class ConductorOptions(BaseModel):
    """Options of the Conductor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store_url: str
    max_running: dict[str, int]
    """Executions that run at once, by workflow. A workflow that is not listed, because this server
    no longer serves it, gets one, so that its executions can fail."""
    replicas: dict[str, int] = {}
    """Replicas that each model has, or may get by autoscaling; 1 if not listed."""
    models_share_gpu: bool = False
    """Whether models share one GPU, and so run one at a time. All conditioning fields are then
    computed before the forecast that they condition."""
    retention: RetentionOptions = RetentionOptions()
    drain_s: float = 5.0
    """How long running steps may take to end when this process stops."""
