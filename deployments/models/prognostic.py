"""The deployment of any prognostic model that is not known by name."""

from __future__ import annotations

from ray import serve

from deployments.models.messages import MAX_CALLS_PER_REPLICA
from deployments.models.replica import ModelReplica
from deployments.models.router import ROUTER


@serve.deployment(
    name="Prognostic",
    max_ongoing_requests=MAX_CALLS_PER_REPLICA,
    request_router_config={"request_router_class": ROUTER},
    # Loading and compiling a model may keep the interpreter for half a minute.
    health_check_period_s=10,
    health_check_timeout_s=30,
)
class Prognostic(ModelReplica):
    """Serves a model of Earth2Studio or of the operator; computes one member at a time."""
