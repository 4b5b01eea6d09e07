"""Route a call to the replica that its job names, or else to the least loaded one."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.models.messages import MAX_CALLS_PER_REPLICA


class IdleFirstRouter(RequestRouter):
    """Spreads the calls of one caller evenly over all replicas.

    Serve takes the better of two replicas drawn at random, which suits many short calls. Ours are
    few and take minutes: of eight calls to eight replicas some would share one while another is
    idle. Calls of other callers are not counted; members have one caller, the Conductor.
    """

    def initialize_state(self, **_: Any) -> None:
        """Start without ongoing calls."""
        self._ongoing: Counter[ReplicaID] = Counter()
        self._sequence = count(1)
        self._last_chosen: dict[ReplicaID, int] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Rank replicas: first the named one, then by ongoing calls, then by longest unchosen."""
        wanted = None
        if pending_request is not None:
            # Otherwise Serve retries without a pause while all replicas are busy.
            pending_request.routing_context.should_backoff = True
            wanted = next((getattr(job, "replica", None) for job in pending_request.args), None)
        ranked = sorted(
            candidate_replicas,
            key=lambda replica: (
                replica.replica_id.unique_id != wanted,
                self._ongoing[replica.replica_id],
                self._last_chosen.get(replica.replica_id, 0),
            ),
        )
        if ranked:
            # Recorded here and not on sending: other calls are routed in between.
            self._last_chosen[ranked[0].replica_id] = next(self._sequence)
        return [[replica] for replica in ranked]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a call that starts."""
        super().on_send_request(replica_id)
        self._ongoing[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count a call that ended."""
        super().on_request_completed(replica_id, internal_request_id)
        self._ongoing[replica_id] -= 1
        if self._ongoing[replica_id] <= 0:
            del self._ongoing[replica_id]


ROUTER = f"{__name__}.{IdleFirstRouter.__name__}"
"""Import path of the router, for a deployment's options."""

MODEL_DEPLOYMENT: dict[str, Any] = {
    "max_ongoing_requests": MAX_CALLS_PER_REPLICA,
    "request_router_config": {"request_router_class": ROUTER},
    # Loading and compiling a model may keep the interpreter for half a minute.
    "health_check_period_s": 10,
    "health_check_timeout_s": 30,
}
"""Serve's options of every deployment of a model."""
