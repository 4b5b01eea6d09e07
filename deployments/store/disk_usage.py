"""The disk usage of executions, which the store accounts for without walking through folders.

A queued or running execution counts with the upper bound of what its plan needs. Its unwritten part
shrinks with its progress. What is left is the disk's free bytes, which already reflect what is
written, minus all unwritten parts. Once an execution has results, it counts with the size in its
manifest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from deployments.store.schema import executions
from workflows.errors import StorageFull, fits
from workflows.execution import FINISHED, Execution, Progress, Status
from workflows.manifest import Manifest


@dataclass(frozen=True)
class Demand:
    """The bytes that a result needs, and those available for results."""

    needed: int
    """Upper bound; 0 if unknown."""
    free: int | None
    """Bytes of the disk that results may still occupy; None if results are not on a disk."""
    quota: int | None = None
    """Bytes that all results together may occupy; None for no bound."""

    def less(self, written: int) -> Demand:
        """Return the demand of a result that is partly written already."""
        return replace(self, needed=max(self.needed - written, 0))


def check_fits(connection: sa.Connection, demand: Demand) -> None:
    """Raise `StorageFull` unless a result fits beside everything that was accepted before."""
    left: list[int] = []
    if demand.free is not None:
        left.append(demand.free - _total(connection, _UNWRITTEN))
    if demand.quota is not None:
        left.append(demand.quota - _total(connection, _ON_DISK))
    if not left or fits(demand.needed, min(left)):
        return
    at_most: list[int] = []
    if demand.free is not None:
        written = _total(connection, _ON_DISK) - _total(connection, _UNWRITTEN)
        at_most.append(demand.free + written)
    if demand.quota is not None:
        at_most.append(demand.quota)
    raise StorageFull(demand.needed, max(min(left), 0), min(at_most))


def written_bytes(connection: sa.Connection, execution_id: str) -> int:
    """Return the bytes that a failed execution still occupies on the disk."""
    query = sa.select(executions.c.disk_bytes).where(executions.c.execution_id == execution_id)
    return int(connection.execute(query).scalar_one())


def reserve(demand: Demand | None, written: int = 0) -> dict[str, Any]:
    """Return the columns of an execution that is queued, with `written` bytes on disk already."""
    needed = 0 if demand is None else demand.needed
    return {"disk_bytes": needed, "unwritten_bytes": max(needed - written, 0)}


NO_USAGE: dict[str, Any] = {"disk_bytes": 0, "unwritten_bytes": 0}
"""The columns of an execution without files."""


def after_update(
    execution: Execution, status: Status | None, progress: Progress | None, results: Manifest | None
) -> dict[str, Any]:
    """Return the columns that change with an update of an execution."""
    # What is written may be kept for a retry.
    written = executions.c.disk_bytes - executions.c.unwritten_bytes
    if status == Status.CANCELLED:
        # Complete results are removed as well, and must no longer be offered.
        return {"disk_bytes": written, "unwritten_bytes": 0, "results": None}
    if results is not None:
        return {"disk_bytes": results.bytes, "unwritten_bytes": 0}
    if execution.results is not None:
        return {}
    if status in FINISHED:
        return {"disk_bytes": written, "unwritten_bytes": 0}
    if progress is not None and progress.total_steps:
        remaining = 1 - progress.current_step / progress.total_steps
        unwritten = executions.c.disk_bytes * sa.literal(remaining, sa.Double)
        return {"unwritten_bytes": sa.cast(unwritten, sa.BigInteger)}
    return {}


def _sum(column: sa.Column[Any]) -> sa.Select[Any]:
    # As text, or the planner would not see that the partial index covers the query.
    nonzero = sa.text(f"{column.name} > 0")
    total = sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)
    return sa.select(total).select_from(executions).where(nonzero)


def _total(connection: sa.Connection, query: sa.Select[Any]) -> int:
    return int(connection.execute(query).scalar_one())


_ON_DISK = _sum(executions.c.disk_bytes)
_UNWRITTEN = _sum(executions.c.unwritten_bytes)
