"""How soon Serve replaces a replica that hangs, and how long it leaves one that is only busy."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.constants import REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD

from deployments.blob_uploader.deployment import BlobUploader
from deployments.conductor.deployment import Conductor
from deployments.custom_workflow.deployment import CustomWorkflow
from deployments.geocatalog.deployment import GeoCatalog
from deployments.initial_conditions.deployment import InitialConditions
from deployments.models.fcn3 import FCN3
from deployments.models.prognostic import Prognostic
from deployments.models.stormscope import StormScope
from deployments.packager.deployment import Packager
from serve_app.http.deployment import Ingress


@pytest.mark.parametrize(
    ("deployment", "busy_s", "hanging_s"),
    [
        (Conductor, 10, 20),
        (Ingress, 30, 60),
        (Packager, 30, 60),
        (BlobUploader, 30, 60),
        (GeoCatalog, 30, 60),
        (InitialConditions, 60, 100),
        (FCN3, 60, 100),
        (Prognostic, 60, 100),
        (StormScope, 60, 100),
        (CustomWorkflow, 300, 400),
    ],
)
def test_hanging_replica_is_replaced_and_a_busy_one_is_not(
    deployment: Any, busy_s: float, hanging_s: float
) -> None:
    config = deployment._deployment_config
    checks_s = REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD * config.health_check_timeout_s
    assert busy_s < checks_s
    assert checks_s + config.health_check_period_s <= hanging_s
