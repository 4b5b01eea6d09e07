"""The record of every execution, in SQLite or PostgreSQL, as the ingress uses it.

The ingress submits, reads and asks for cancellation; all else is written by the Conductor, see
`deployments.store.conductor_view`.

The table is also the queue: its bound is checked, the position counted and the next execution
claimed in transactions that take the write lock first. So is what results take of the disk, see
`deployments.store.disk_usage`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from deployments.store import disk_usage
from deployments.store.disk_usage import Demand
from deployments.store.schema import (
    EXECUTION_COLUMNS,
    conductors,
    create_tables,
    descriptions,
    execution_of,
    executions,
    open_engine,
    readiness,
    row_of,
)
from workflows.errors import (
    ExecutionNotFound,
    IdempotencyConflict,
    IllegalTransition,
    QueueFull,
)
from workflows.execution import (
    FINISHED,
    Execution,
    Status,
    check_transition,
)

IDEMPOTENCY_WINDOW = timedelta(hours=24)
_POSTGRES_WRITE_LOCK = 0x6561727468327376  # "earth2sv"


@dataclass(frozen=True)
class Idempotency:
    """A client's Idempotency-Key with the digest of the body it came with."""

    key: str
    body_digest: str


@dataclass(frozen=True)
class Submitted:
    """What became of a submit."""

    execution: Execution
    position: int | None
    replayed: bool
    """True if the Idempotency-Key was known and nothing was queued."""


@dataclass(frozen=True)
class Readiness:
    """Whether a model or data source can be used."""

    ready: bool
    reason: str | None
    checked_at: datetime


class ExecutionStore:
    """Executions in a database.

    Parameters
    ----------
    url : str
        ``sqlite:///path`` or ``postgresql+psycopg://…``.

    Notes
    -----
    Methods are synchronous and thread-safe. On SQLite a read takes a fraction of a millisecond;
    from an event loop, call PostgreSQL in a thread.
    """

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        # Threads that find SQLite's lock taken sleep for longer and longer, up to 0.1 s; here
        # they only wait for each other.
        self._our_turn: AbstractContextManager[Any] = (
            threading.Lock() if self.is_sqlite else nullcontext()
        )
        with self._writing() as connection:
            create_tables(connection)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """Open a transaction that holds the write lock from its first statement.

        SQLite's write lock comes with BEGIN IMMEDIATE (see `open_engine`), PostgreSQL's is an
        advisory lock: count and insert are one step for all processes.
        """
        with self._our_turn, self.engine.connect() as connection:
            connection = connection.execution_options(writing=True)
            with connection.begin():
                if not self.is_sqlite:
                    connection.execute(
                        sa.select(sa.func.pg_advisory_xact_lock(_POSTGRES_WRITE_LOCK))
                    )
                yield connection

    def submit(
        self,
        execution: Execution,
        *,
        max_queued: int,
        idempotency: Idempotency | None = None,
        demand: Demand | None = None,
    ) -> Submitted:
        """Accept an execution, or give back the one that its Idempotency-Key names.

        Parameters
        ----------
        demand : Demand, optional
            What it needs of the disk; None does not ask.

        Raises
        ------
        StorageFull
            If its result has no room beside those that are there or will be written.
        QueueFull
            If `max_queued` executions wait already.
        IdempotencyConflict
            If the key came with another body within the last 24 hours.
        """
        with self._writing() as connection:
            if idempotency is not None:
                known = self._replay(connection, execution.workflow, idempotency)
                if known is not None:
                    return Submitted(known, self._position(connection, known), replayed=True)
            if demand is not None:
                disk_usage.check(connection, demand)
            queued: int = connection.execute(_COUNT_QUEUED).scalar_one()
            if queued >= max_queued:
                raise QueueFull(queued, max_queued)
            connection.execute(
                _INSERT,
                {
                    **row_of(execution),
                    **disk_usage.promised(demand),
                    "idempotency_key": idempotency and idempotency.key,
                    "body_digest": idempotency and idempotency.body_digest,
                },
            )
        return Submitted(execution, queued, replayed=False)

    def replay(self, workflow: str, idempotency: Idempotency) -> Submitted | None:
        """Give what an Idempotency-Key was used for in the last 24 hours; None if it is new.

        Raises
        ------
        IdempotencyConflict
            If it came with another body.
        """
        with self.engine.connect() as connection:
            known = self._replay(connection, workflow, idempotency)
            if known is None:
                return None
            return Submitted(known, self._position(connection, known), replayed=True)

    def _replay(
        self, connection: sa.Connection, workflow: str, idempotency: Idempotency
    ) -> Execution | None:
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
        return execution_of(row)

    def get(self, workflow: str, execution_id: str) -> Execution:
        """Read one execution.

        Raises
        ------
        ExecutionNotFound
            If that workflow has no such execution.
        """
        with self.engine.connect() as connection:
            return self._get(connection, execution_id, workflow)

    def _get(
        self, connection: sa.Connection, execution_id: str, workflow: str | None = None
    ) -> Execution:
        row = connection.execute(_SELECT_ONE, {"id": execution_id}).first()
        if row is None or (workflow is not None and row.workflow != workflow):
            raise ExecutionNotFound(execution_id)
        return execution_of(row)

    def position(self, execution: Execution) -> int | None:
        """Count the queued executions of its workflow ahead of this one; None if it does not wait.

        Those of other workflows do not stand in its way: each has replicas of its own.
        """
        if execution.status != Status.QUEUED:
            return None
        with self.engine.connect() as connection:
            return self._position(connection, execution)

    def _position(self, connection: sa.Connection, execution: Execution) -> int | None:
        if execution.status != Status.QUEUED:
            return None
        return connection.scalar(
            _COUNT_AHEAD, {"id": execution.execution_id, "workflow": execution.workflow}
        )

    def list_executions(
        self,
        workflow: str,
        *,
        statuses: Sequence[Status] = (),
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[Execution]:
        """List executions of a workflow, newest first.

        Parameters
        ----------
        before : str, optional
            An execution id: the page goes on with the ones accepted before it.

        Raises
        ------
        ExecutionNotFound
            If `before` names no execution of that workflow.
        """
        query = sa.select(*EXECUTION_COLUMNS).where(executions.c.workflow == workflow)
        if statuses:
            query = query.where(executions.c.status.in_([str(status) for status in statuses]))
        if created_after is not None:
            query = query.where(executions.c.created_at >= created_after)
        if created_before is not None:
            query = query.where(executions.c.created_at < created_before)
        with self.engine.connect() as connection:
            if before is not None:
                number = connection.scalar(
                    sa.select(executions.c.number).where(
                        executions.c.execution_id == before, executions.c.workflow == workflow
                    )
                )
                if number is None:
                    raise ExecutionNotFound(before)
                query = query.where(executions.c.number < number)
            query = query.order_by(executions.c.number.desc()).limit(limit)
            return [execution_of(row) for row in connection.execute(query)]

    def request_cancel(self, workflow: str, execution_id: str) -> Execution:
        """Note that an execution shall end; one that still waits is cancelled here and now.

        Raises
        ------
        ExecutionNotFound
            If that workflow has no such execution.
        IllegalTransition
            If it has finished.
        """
        with self._writing() as connection:
            execution = self._get(connection, execution_id, workflow)
            if execution.status in FINISHED:
                raise IllegalTransition(f"the execution is {execution.status} already")
            if execution.status == Status.QUEUED:
                return self._update(
                    connection,
                    execution,
                    status=Status.CANCELLED,
                    ended_at=datetime.now(UTC),
                    cancel_requested=True,
                    results=None,
                    **disk_usage.NOTHING,
                )
            return self._update(connection, execution, cancel_requested=True)

    def request_purge(self, workflow: str, execution_id: str) -> Execution:
        """Note that a finished execution shall be removed with its results.

        Raises
        ------
        ExecutionNotFound
            If that workflow has no such execution.
        IllegalTransition
            If it has not finished.
        """
        with self._writing() as connection:
            execution = self._get(connection, execution_id, workflow)
            if execution.status not in FINISHED:
                raise IllegalTransition(
                    f"the execution is {execution.status}: cancel it before it is purged"
                )
            return self._update(connection, execution, purge_requested=True)

    def request_retry(
        self,
        workflow: str,
        execution_id: str,
        *,
        max_queued: int,
        demand: Demand | None = None,
    ) -> Execution:
        """Queue a failed execution again; what it has packaged is not made anew.

        Nor are members that are whole: their files have stayed.

        Parameters
        ----------
        demand : Demand, optional
            What it needs of the disk, unless it has packaged; None does not ask.

        Raises
        ------
        StorageFull
            As `submit`.
        ExecutionNotFound
            If that workflow has no such execution.
        IllegalTransition
            If it has not failed, or shall be removed.
        QueueFull
            If `max_queued` executions wait already.
        """
        with self._writing() as connection:
            execution = self._get(connection, execution_id, workflow)
            if execution.status != Status.FAILED or execution.purge_requested:
                state = "about to be removed" if execution.purge_requested else execution.status
                raise IllegalTransition(
                    f"only what has failed can be tried again, and the execution is {state}"
                )
            packaged = execution.is_packaged
            written = 0
            if demand is not None and not packaged:
                written = disk_usage.written_by(connection, execution_id)
                disk_usage.check(connection, demand.less(written))
            queued: int = connection.execute(_COUNT_QUEUED).scalar_one()
            if queued >= max_queued:
                raise QueueFull(queued, max_queued)
            return self._update(
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
                **({} if packaged else disk_usage.promised(demand, written)),
            )

    def revisions(self, execution_ids: Sequence[str]) -> dict[str, int]:
        """Read the revisions of many executions at once; missing ones are left out."""
        query = sa.select(executions.c.execution_id, executions.c.revision).where(
            executions.c.execution_id.in_(execution_ids)
        )
        with self.engine.connect() as connection:
            return {row.execution_id: row.revision for row in connection.execute(query)}

    def revision(self, execution_id: str) -> int | None:
        """Read the revision of one execution; None if there is none.

        Every poll of a client asks it. On SQLite it goes past SQLAlchemy, whose transaction
        costs 75 µs around a query of 10.
        """
        if self.is_sqlite:
            driver = self.engine.raw_connection()
            try:
                cursor = driver.cursor()
                cursor.execute(_SQLITE_REVISION, (execution_id,))
                row = cursor.fetchone()
            finally:
                driver.close()
            return None if row is None else row[0]
        with self.engine.connect() as connection:
            revision: int | None = connection.scalar(_SELECT_REVISION, {"id": execution_id})
            return revision

    def count_by_status(self) -> dict[tuple[str, str], int]:
        """Count executions per (workflow, status)."""
        query = sa.select(executions.c.workflow, executions.c.status, sa.func.count()).group_by(
            executions.c.workflow, executions.c.status
        )
        with self.engine.connect() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(query)}

    def conductor_heartbeat(self) -> datetime | None:
        """Read when a Conductor last said that it works; None if none ever did."""
        with self.engine.connect() as connection:
            beat: datetime | None = connection.scalar(
                sa.select(sa.func.max(conductors.c.heartbeat_at))
            )
            return beat

    def readiness(self) -> dict[str, Readiness]:
        """Read what the Conductor found of models and data sources, by name."""
        with self.engine.connect() as connection:
            return {
                row.component: Readiness(row.ready, row.reason, row.checked_at)
                for row in connection.execute(sa.select(readiness))
            }

    def description(self, workflow: str) -> dict[str, Any] | None:
        """Read how a user's workflow was described last; None if it never was."""
        query = sa.select(descriptions.c.description).where(descriptions.c.workflow == workflow)
        with self.engine.connect() as connection:
            found: dict[str, Any] | None = connection.scalar(query)
            return found

    def read(self, execution_id: str) -> Execution:
        """Read one execution, whatever its workflow.

        Raises
        ------
        ExecutionNotFound
            If there is none.
        """
        with self.engine.connect() as connection:
            return self._get(connection, execution_id)

    def _update(self, connection: sa.Connection, execution: Execution, **values: Any) -> Execution:
        if "status" in values:
            check_transition(execution.status, values["status"])
        values["revision"] = execution.revision + 1
        connection.execute(
            sa.update(executions)
            .where(executions.c.execution_id == execution.execution_id)
            .values(**values)
        )
        return Execution.model_validate({**execution.model_dump(), **values})


_INSERT = sa.insert(executions)
_SELECT_ONE = sa.select(*EXECUTION_COLUMNS).where(executions.c.execution_id == sa.bindparam("id"))
_SELECT_REVISION = sa.select(executions.c.revision).where(
    executions.c.execution_id == sa.bindparam("id")
)
_SQLITE_REVISION = f"SELECT revision FROM {executions.name} WHERE execution_id = ?"  # noqa: S608
_COUNT_QUEUED = sa.select(sa.func.count()).where(executions.c.status == Status.QUEUED)
_COUNT_AHEAD = sa.select(sa.func.count()).where(
    executions.c.status == Status.QUEUED,
    executions.c.workflow == sa.bindparam("workflow"),
    executions.c.number
    < sa.select(executions.c.number)
    .where(executions.c.execution_id == sa.bindparam("id"))
    .scalar_subquery(),
)
