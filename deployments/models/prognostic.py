"""The deployment of any prognostic model that is not known by name."""

from __future__ import annotations

from ray import serve

from deployments.models.replica import ModelReplica
from deployments.models.router import MODEL_DEPLOYMENT


@serve.deployment(name="Prognostic", **MODEL_DEPLOYMENT)
class Prognostic(ModelReplica):
    """Serves a model of Earth2Studio or of the operator; computes one member at a time."""
