"""The execution store as the ingress uses it: it submits, reads, and requests changes.

All other writes are the Conductor's, see `deployments.store.conductor_view`.

The table of executions is also the queue. Its bound, the position in it and the next claim are
decided in transactions that take the write lock first, and so is whether results fit on the disk,
see `deployments.store.disk_usage`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

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
    """A client's Idempotency-Key with the digest of the body that it came with."""

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
    """Executions in a database."""

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
            If its result does not fit beside those that are kept or will be written.
        QueueFull
            If `max_queued` executions are queued already.
        IdempotencyConflict
            If the key came with another body within the last 24 hours.
        """
        with self.writing() as connection:
            if idempotency is not None:
                earlier = _replay(connection, execution.workflow, idempotency)
                if earlier is not None:
                    return earlier
            if demand is not None:
                disk_usage.check_fits(connection, demand)
            queued = _check_queue(connection, max_queued)
            connection.execute(
                _INSERT,
                {
                    **row_of(execution),
                    **disk_usage.reserve(demand),
                    "idempotency_key": idempotency and idempotency.key,
                    "body_digest": idempotency and idempotency.body_digest,
                },
            )
        return Submitted(execution, queued, replayed=False)

    def replay(self, workflow: str, idempotency: Idempotency) -> Submitted | None:
        """Return what an Idempotency-Key was used for in the last 24 hours; None if it is new.

        Raises
        ------
        IdempotencyConflict
            If it came with another body.
        """
        with self.engine.connect() as connection:
            return _replay(connection, workflow, idempotency)

    def request_cancel(self, workflow: str, execution_id: str) -> Execution:
        """Ask for an execution to be cancelled; a queued one is cancelled here.

        Raises
        ------
        ExecutionNotFound
            If that workflow has no such execution.
        IllegalTransition
            If it has finished.
        """
        with self.writing() as connection:
            execution = read_execution(connection, execution_id, workflow)
            if execution.status in FINISHED:
                raise IllegalTransition(f"the execution is {execution.status} already")
            if execution.status == Status.QUEUED:
                return update_execution(
                    connection,
                    execution,
                    status=Status.CANCELLED,
                    ended_at=datetime.now(UTC),
                    cancel_requested=True,
                    results=None,
                    **disk_usage.NO_USAGE,
                )
            return update_execution(connection, execution, cancel_requested=True)

    def request_purge(self, workflow: str, execution_id: str) -> Execution:
        """Ask for a finished execution to be removed with its results.

        Raises
        ------
        ExecutionNotFound
            If that workflow has no such execution.
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
        self,
        workflow: str,
        execution_id: str,
        *,
        max_queued: int,
        demand: Demand | None = None,
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
        ExecutionNotFound
            If that workflow has no such execution.
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
            packaged = execution.is_packaged
            written = 0
            if demand is not None and not packaged:
                written = disk_usage.written_bytes(connection, execution_id)
                disk_usage.check_fits(connection, demand.less(written))
            _check_queue(connection, max_queued)
            return update_execution(
                connection,
                execution,
                status=Status.QUEUED,
                stage=execution.stage if packaged else None,
                progress=execution.progress.model_dump(mode="json")
                if packaged and execution.progress
                else None,
                results=execution.results.model_dump(mode="json")
                if packaged and execution.results
                else None,
                error_message=None,
                started_at=None,
                ended_at=None,
                cancel_requested=False,
                retries=execution.retries + 1,
                **({} if packaged else disk_usage.reserve(demand, written)),
            )


def _check_queue(connection: sa.Connection, max_queued: int) -> int:
    """Return the number of queued executions.

    Raises
    ------
    QueueFull
    """
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
