"""The status of executions, told again only when it has changed.

Clients poll. Between two changes each poll costs the read of one revision, whatever the size of
the manifest that hangs on the execution.
"""

from __future__ import annotations

import json
from threading import Lock
from typing import NamedTuple

from deployments.store.executions import ExecutionStore
from serve_app.http.schemas import status_body
from workflows.execution import Execution

REMEMBERED = 1024


class Observation(NamedTuple):
    """One execution as a client is told of it."""

    execution: Execution
    """Without its results, which can be large."""
    position: int | None
    body: bytes
    """The answer to a request for its status, JSON."""
    packaged: bool
    """Whether there are results to be had."""

    @property
    def revision(self) -> int:
        """Give the revision that was seen."""
        return self.execution.revision


class StatusCache:
    """Tells the status of executions; thread-safe.

    Parameters
    ----------
    store : ExecutionStore
    size : int
        Executions that are remembered.
    """

    def __init__(self, store: ExecutionStore, size: int = REMEMBERED) -> None:
        self._store = store
        self._size = size
        self._known: dict[tuple[str, str], Observation] = {}
        self._lock = Lock()

    def look(self, workflow: str, execution_id: str) -> Observation:
        """Tell the status of an execution as it is now.

        Raises
        ------
        ExecutionNotFound
            If that workflow has no such execution.
        """
        key = workflow, execution_id
        known = self._known.get(key)
        if (
            known is not None
            and self._store.revision(execution_id) == known.revision
            # A position changes with the executions ahead, not with one's own revision.
            and self._store.position(known.execution) == known.position
        ):
            return known
        execution = self._store.get(workflow, execution_id)
        position = self._store.position(execution)
        body = json.dumps(status_body(execution, position), separators=(",", ":")).encode()
        packaged = execution.results is not None
        bare = execution.model_copy(update={"results": None})
        seen = Observation(bare, position, body, packaged)
        self._remember(key, seen)
        return seen

    def _remember(self, key: tuple[str, str], seen: Observation) -> None:
        with self._lock:
            self._known.pop(key, None)
            self._known[key] = seen
            if len(self._known) > self._size:
                del self._known[next(iter(self._known))]
