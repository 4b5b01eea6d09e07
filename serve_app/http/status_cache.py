"""Cache of status responses, so that polling is cheap.

Between two changes of an execution, a poll reads its revision only.
"""

from __future__ import annotations

import json
from threading import Lock
from typing import NamedTuple

from deployments.store.executions import ExecutionStore
from serve_app.http.schemas import status_body
from workflows.execution import Execution

CACHED_EXECUTIONS = 1024


class StatusSnapshot(NamedTuple):
    """Status of an execution at one revision."""

    execution: Execution
    position: int | None
    body: bytes
    """JSON body of the status response."""
    has_results: bool


class StatusCache:
    """Caches the status of up to `size` executions; thread-safe."""

    def __init__(self, store: ExecutionStore, size: int = CACHED_EXECUTIONS) -> None:
        self._store = store
        self._size = size
        self._snapshots: dict[tuple[str, str], StatusSnapshot] = {}
        self._lock = Lock()

    def get(self, workflow: str, execution_id: str) -> StatusSnapshot:
        """Return the current status of an execution.

        Raises
        ------
        ExecutionNotFound
            If the workflow has no such execution.
        """
        key = workflow, execution_id
        cached = self._snapshots.get(key)
        if (
            cached is not None
            and self._store.revision(execution_id) == cached.execution.revision
            # The position depends on the executions ahead, not on this one's revision.
            and self._store.position(cached.execution) == cached.position
        ):
            return cached
        execution = self._store.get(workflow, execution_id)
        position = self._store.position(execution)
        body = json.dumps(status_body(execution, position), separators=(",", ":")).encode()
        snapshot = StatusSnapshot(execution, position, body, execution.results is not None)
        with self._lock:
            self._snapshots.pop(key, None)
            self._snapshots[key] = snapshot
            if len(self._snapshots) > self._size:
                del self._snapshots[next(iter(self._snapshots))]
        return snapshot
