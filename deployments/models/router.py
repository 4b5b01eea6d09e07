"""Which replica a call goes to: the one that its caller knows to be free, else the idlest."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica


class IdleFirstRouter(RequestRouter):
    """Spreads a caller's calls evenly over all replicas.

    Serve looks at two replicas at random and takes the better one: of eight calls to eight
    replicas some share one, while another has nothing to do. That is for many short calls; ours
    are few and take minutes. Calls of others are not seen: members have one caller, the Conductor.
    """

    def initialize_state(self, **_: Any) -> None:
        """Begin without any call under way."""
        self._ongoing: Counter[ReplicaID] = Counter()
        self._turn = count(1)
        self._chosen: dict[ReplicaID, int] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Rank all replicas: one that the job names, then by calls under way, then in turn."""
        wanted = None
        if pending_request is not None:
            # Without it Serve asks again at once where all replicas are busy.
            pending_request.routing_context.should_backoff = True
            wanted = next((getattr(job, "replica", None) for job in pending_request.args), None)
        ranked = sorted(
            candidate_replicas,
            key=lambda replica: (
                replica.replica_id.unique_id != wanted,
                self._ongoing[replica.replica_id],
                self._chosen.get(replica.replica_id, 0),
            ),
        )
        if ranked:
            # Noted now, not when it is sent: other calls are routed meanwhile.
            self._chosen[ranked[0].replica_id] = next(self._turn)
        return [[replica] for replica in ranked]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a call."""
        super().on_send_request(replica_id)
        self._ongoing[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count one less."""
        super().on_request_completed(replica_id, internal_request_id)
        self._ongoing[replica_id] -= 1
        if self._ongoing[replica_id] <= 0:
            del self._ongoing[replica_id]


ROUTER = f"{__name__}.{IdleFirstRouter.__name__}"
"""Its import path, for a deployment's options."""
