"""How much of the disk executions take, by the store's account; nobody walks through folders.

An execution that waits or runs takes what its plan needs at most. What of that is not written yet
shrinks with its progress, so that the disk's free bytes, which know of what is written, and this
together say what is left. Once it has results they take what their manifest says.
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
    """What a result needs, and what there is for results."""

    needed: int
    """Bytes at most; 0 if nobody knows."""
    free: int | None
    """Bytes that results may still take of the disk; None if there is no disk to fill."""
    quota: int | None = None
    """Bytes that all results together may take; None is no bound."""

    def less(self, written: int) -> Demand:
        """Give the demand of one that has written a part already."""
        return replace(self, needed=max(self.needed - written, 0))


def check(connection: sa.Connection, demand: Demand) -> None:
    """Refuse what has no room beside what was accepted before.

    Raises
    ------
    StorageFull
    """
    left: list[int] = []
    if demand.free is not None:
        left.append(demand.free - _total(connection, _UNWRITTEN))
    if demand.quota is not None:
        left.append(demand.quota - _total(connection, _ON_DISK))
    if not left or fits(demand.needed, min(left)):
        return
    at_most: list[int] = []
    if demand.free is not None:
        used = _total(connection, _ON_DISK)
        written = used - _total(connection, _UNWRITTEN)
        at_most.append(demand.free + written)
    if demand.quota is not None:
        at_most.append(demand.quota)
    raise StorageFull(demand.needed, max(min(left), 0), min(at_most))


def written_by(connection: sa.Connection, execution_id: str) -> int:
    """Read how many bytes of an execution that has failed are there still."""
    query = sa.select(executions.c.disk_bytes).where(executions.c.execution_id == execution_id)
    return int(connection.execute(query).scalar_one())


def promised(demand: Demand | None, written: int = 0) -> dict[str, Any]:
    """Give the columns of an execution that is accepted; some of it may be written already."""
    needed = 0 if demand is None else demand.needed
    return {"disk_bytes": needed, "unwritten_bytes": max(needed - written, 0)}


NOTHING: dict[str, Any] = {"disk_bytes": 0, "unwritten_bytes": 0}
"""The columns of an execution that has nothing on the disk."""


def changed(
    execution: Execution,
    status: Status | None,
    progress: Progress | None,
    results: Manifest | None,
) -> dict[str, Any]:
    """Give the columns that change with an execution, as far as they do."""
    if status == Status.CANCELLED:
        # What was packaged before is removed as well, and nobody shall be told of it.
        return {**NOTHING, "results": None}
    if results is not None:
        return {"disk_bytes": results.bytes, "unwritten_bytes": 0}
    if execution.results is not None:
        return {}
    if status in FINISHED:
        # What is written may stay for a retry.
        written = executions.c.disk_bytes - executions.c.unwritten_bytes
        return {"disk_bytes": written, "unwritten_bytes": 0}
    if progress is not None and progress.total_steps:
        left = 1 - progress.current_step / progress.total_steps
        unwritten = executions.c.disk_bytes * sa.literal(left, sa.Double)
        return {"unwritten_bytes": sa.cast(unwritten, sa.BigInteger)}
    return {}


def _sum(column: sa.Column[Any]) -> sa.Select[Any]:
    # As text, or the planner would not know that the index has all that counts.
    counts = sa.text(f"{column.name} > 0")
    total = sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)
    return sa.select(total).select_from(executions).where(counts)


def _total(connection: sa.Connection, query: sa.Select[Any]) -> int:
    return int(connection.execute(query).scalar_one())


_ON_DISK = _sum(executions.c.disk_bytes)
_UNWRITTEN = _sum(executions.c.unwritten_bytes)
