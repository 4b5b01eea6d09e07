"""The choice of a replica for a call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.request_router import PendingRequest

from deployments.models.fcn3 import FCN3
from deployments.models.router import ROUTER, IdleFirstRouter
from deployments.models.stormscope import StormScope

DEPLOYMENT = DeploymentID("FCN3", "application")
REPLICAS: list[Any] = [
    SimpleNamespace(replica_id=ReplicaID(name, DEPLOYMENT)) for name in ("one", "two", "three")
]


class Handleless(IdleFirstRouter):
    """The router without Serve around it."""

    def __init__(self) -> None:
        self.initialize_state()
        self._use_replica_queue_len_cache = False


async def ranked(router: IdleFirstRouter, *args: Any) -> list[str]:
    request = PendingRequest(args=list(args), kwargs={}, metadata=None)  # type: ignore[arg-type]
    ranks = await router.choose_replicas(REPLICAS, request)
    assert all(len(rank) == 1 for rank in ranks)
    assert request.routing_context.should_backoff
    return [rank[0].replica_id.unique_id for rank in ranks]


async def test_concurrent_calls_go_to_different_replicas() -> None:
    router = Handleless()
    # No call is sent before all are routed.
    assert sorted([(await ranked(router))[0] for _ in REPLICAS]) == ["one", "three", "two"]


async def test_ranks_all_replicas_by_ongoing_calls() -> None:
    router = Handleless()
    for name in ("one", "one", "two"):
        router.on_send_request(ReplicaID(name, DEPLOYMENT))
    assert await ranked(router) == ["three", "two", "one"]
    for _ in range(2):
        router.on_request_completed(ReplicaID("one", DEPLOYMENT), "request")
    router.on_send_request(ReplicaID("three", DEPLOYMENT))
    assert (await ranked(router))[0] == "one"


async def test_the_replica_that_a_job_names_is_first() -> None:
    router = Handleless()
    router.on_send_request(ReplicaID("two", DEPLOYMENT))
    assert (await ranked(router, SimpleNamespace(replica="two")))[0] == "two"
    # A replica that no longer exists is ignored.
    assert (await ranked(router, SimpleNamespace(replica="gone")))[0] != "two"
    assert (await ranked(router, SimpleNamespace(replica=None)))[0] != "two"
    assert (await ranked(router, "interpolation"))[0] != "two"


async def test_without_replicas_the_ranking_is_empty() -> None:
    router = Handleless()
    assert await router.choose_replicas([], None) == []


@pytest.mark.parametrize("deployment", [FCN3, StormScope])
def test_the_models_use_the_router(deployment: Any) -> None:
    config = deployment._deployment_config.request_router_config
    assert config.request_router_class == ROUTER
    assert config.get_request_router_class().__name__ == IdleFirstRouter.__name__
