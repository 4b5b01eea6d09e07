"""The sections ``queue``, ``ingress`` and ``packager``."""

from __future__ import annotations

from pydantic import Field

from deployments.models.options import WindowConfig
from deployments.runtime.option_types import Replicas
from serve_app.http.options import QueueOptions
from serve_app.settings.section import Section


class QueueSettings(QueueOptions, Section):
    """How many executions may wait and run."""

    max_running: Replicas | None = Field(
        default=None,
        description="Executions of one workflow that run at once. Null is the replicas of its "
        "model plus 3, and the replicas of a workflow of your own.",
    )


class IngressSettings(Section):
    """The HTTP API."""

    replicas: Replicas = Field(default=1, description="Replicas that answer HTTP requests.")


class PackagerSettings(WindowConfig, Section):
    """Writing of results."""

    replicas: Replicas = Field(default=2, description="Replicas that write results.")
