"""The execution store as the ingress uses it: it submits, reads, and requests changes.

All other writes are the Conductor's, see `deployments.store.conductor_view`.

The table of executions is also the queue. Its bound, the position in it, the next claim and
whether results fit on the disk (see `deployments.store.disk_usage`) are decided in transactions
that take the write lock first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from deployments.store import disk_usage
from deployments.store.disk_usage import Demand
from deployments.store.reader import ExecutionReader, queue_position
from deployments.store.rows import (
    EXECUTION_COLUMNS,
    execution_of,
    read_execution,
    row_of,
    update_execution,
)
from deployments.store.schema import executions
from workflows.errors import IdempotencyConflict, IllegalTransition, QueueFull
from workflows.execution import FINISHED, Execution, Status

IDEMPOTENCY_WINDOW = timedelta(hours=24)


@dataclass(frozen=True)
class Idempotency:
    """A client's Idempotency-Key with the digest of the request's body."""

    key: str
    body_digest: str


@dataclass(frozen=True)
class Submitted:
    """The outcome of a submit."""

    execution: Execution
    position: int | None
    replayed: bool
    """Whether the Idempotency-Key was known, so that nothing was queued."""


class ExecutionStore(ExecutionReader):
    """Executions in a database.

    Methods that request a change raise `ExecutionNotFound` if the workflow has no such execution.
    """

    def submit(
        self,
        execution: Execution,
        *,
        max_queued: int,
        idempotency: Idempotency | None = None,
        demand: Demand | None = None,
    ) -> Submitted:
        """Queue an execution, or return the earlier one with the same Idempotency-Key.

        Parameters
        ----------
        demand : Demand, optional
            What it needs of the disk; None skips that check.

        Raises
        ------
        StorageFull
            If its result does not fit beside those that exist or will be written.
        QueueFull
            If `max_queued` executions are queued already.
        IdempotencyConflict
            If the key was used with another body in the last 24 hours.
        """
        # Before the lock: large parameters take a while.
        row = {
            **row_of(execution),
            **disk_usage.reserve(demand),
            "idempotency_key": idempotency and idempotency.key,
            "body_digest": idempotency and idempotency.body_digest,
        }
        with self.writing() as connection:
            if idempotency is not None:
                earlier = _replay(connection, execution.workflow, idempotency)
                if earlier is not None:
                    return earlier
            if demand is not None:
                disk_usage.check_fits(connection, demand)
            queued = _check_queue(connection, max_queued)
            connection.execute(_INSERT, row)
        return Submitted(execution, queued, replayed=False)

    def replay(self, workflow: str, idempotency: Idempotency) -> Submitted | None:
        """Return what an Idempotency-Key was used for in the last 24 hours; None if it is new.

        Raises
        ------
        IdempotencyConflict
            If it was used with another body.
        """
        with self.engine.connect() as connection:
            return _replay(connection, workflow, idempotency)

    def request_cancel(self, workflow: str, execution_id: str) -> Execution:
        """Request the cancellation of an execution.

        One that has never run is cancelled at once. One that waits for a retry has files, which the
        Conductor removes first.

        Raises
        ------
        IllegalTransition
            If it has finished.
        """
        with self.writing() as connection:
            execution = read_execution(connection, execution_id, workflow)
            if execution.status in FINISHED:
                raise IllegalTransition(f"the execution is {execution.status} already")
            if execution.status == Status.QUEUED and not execution.retries:
                return update_execution(
                    connection,
                    execution,
                    status=Status.CANCELLED,
                    ended_at=max(datetime.now(UTC), execution.created_at),
                    cancel_requested=True,
                    **disk_usage.NO_USAGE,
                )
            return update_execution(connection, execution, cancel_requested=True)

    def request_purge(self, workflow: str, execution_id: str) -> Execution:
        """Request the removal of a finished execution with its results.

        Raises
        ------
        IllegalTransition
            If it has not finished.
        """
        with self.writing() as connection:
            execution = read_execution(connection, execution_id, workflow)
            if execution.status not in FINISHED:
                raise IllegalTransition(
                    f"the execution is {execution.status}: cancel it before it is purged"
                )
            return update_execution(connection, execution, purge_requested=True)

    def request_retry(
        self, workflow: str, execution_id: str, *, max_queued: int, demand: Demand | None = None
    ) -> Execution:
        """Queue a failed execution again.

        Complete results are only delivered again. Otherwise the completed members are kept, and
        the others are computed again.

        Parameters
        ----------
        demand : Demand, optional
            What it needs of the disk unless its results are complete; None skips that check.

        Raises
        ------
        StorageFull
            As `submit`.
        IllegalTransition
            If it has not failed, or is about to be removed.
        QueueFull
            If `max_queued` executions are queued already.
        """
        with self.writing() as connection:
            execution = read_execution(connection, execution_id, workflow)
            if execution.status != Status.FAILED or execution.purge_requested:
                state = "about to be removed" if execution.purge_requested else execution.status
                raise IllegalTransition(
                    f"only failed executions can be retried, and the execution is {state}"
                )
            computed_again: dict[str, Any] = {}
            if not execution.is_packaged:
                written = 0
                if demand is not None:
                    written = disk_usage.written_bytes(connection, execution_id)
                    disk_usage.check_fits(connection, demand.less(written))
                computed_again = dict.fromkeys(("stage", "progress", "results"))
                computed_again |= disk_usage.reserve(demand, written)
            _check_queue(connection, max_queued)
            return update_execution(
                connection,
                execution,
                status=Status.QUEUED,
                error_message=None,
                started_at=None,
                ended_at=None,
                cancel_requested=False,
                retries=execution.retries + 1,
                **computed_again,
            )


def _check_queue(connection: sa.Connection, max_queued: int) -> int:
    """Return the number of queued executions; raises `QueueFull` at the limit."""
    queued: int = connection.execute(_COUNT_QUEUED).scalar_one()
    if queued >= max_queued:
        raise QueueFull(queued, max_queued)
    return queued


def _replay(connection: sa.Connection, workflow: str, idempotency: Idempotency) -> Submitted | None:
    row = connection.execute(
        sa.select(*EXECUTION_COLUMNS, executions.c.body_digest)
        .where(
            executions.c.workflow == workflow,
            executions.c.idempotency_key == idempotency.key,
            executions.c.created_at > datetime.now(UTC) - IDEMPOTENCY_WINDOW,
        )
        .order_by(executions.c.number.desc())
    ).first()
    if row is None:
        return None
    if row.body_digest != idempotency.body_digest:
        raise IdempotencyConflict(
            "this Idempotency-Key was used with another body in the last 24 hours"
        )
    execution = execution_of(row)
    return Submitted(execution, queue_position(connection, execution), replayed=True)


_INSERT = sa.insert(executions)
_COUNT_QUEUED = sa.select(sa.func.count()).where(executions.c.status == Status.QUEUED)
