"""Readiness of a model, a data source or a user's workflow, as its deployment reports it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from workflows.custom import WorkflowDescription
from workflows.dataset import Origin
from workflows.model_description import ModelDescription


class Ready(BaseModel):
    """The component can be used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Origin
    """What it is, for the provenance of results."""
    description: WorkflowDescription | ModelDescription | None = None
    """Description of a user's workflow class or of a model; None for all other components."""


class NotReady(BaseModel):
    """The component cannot be used now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    description: WorkflowDescription | None = None
    """Description of a user's workflow class that is imported but cannot run yet."""


ComponentStatus = Ready | NotReady
