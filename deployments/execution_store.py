"""The record of every execution, in SQLite or PostgreSQL: the only SQL of ours.

The ingress submits, reads and asks for cancellation; after that only the Conductor that holds the
newest fencing token writes. The table is also the queue: its bound is checked, the position
counted and the next execution claimed in transactions that take the write lock first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from workflows.errors import (
    ExecutionNotFound,
    IdempotencyConflict,
    IllegalTransition,
    QueueFull,
    StaleConductor,
)
from workflows.execution import (
    FINISHED,
    Execution,
    Progress,
    Stage,
    Status,
    check_transition,
)

IDEMPOTENCY_WINDOW = timedelta(hours=24)
LOCK_WAIT_S = 30.0
_POSTGRES_WRITE_LOCK = 0x6561727468327376  # "earth2sv"

metadata = sa.MetaData()
_json = sa.JSON()


class _UtcTime(sa.TypeDecorator[datetime]):
    """Times are stored as microseconds since 1970: alike in both dialects, and sortable."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else round(value.timestamp() * 1e6)

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else datetime.fromtimestamp(value / 1e6, UTC)


executions = sa.Table(
    "executions",
    metadata,
    sa.Column(
        "number",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
        comment="order of acceptance",
    ),
    sa.Column("execution_id", sa.String(64), nullable=False, unique=True),
    sa.Column("workflow", sa.String(255), nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("stage", sa.String(32)),
    sa.Column("parameters", _json, nullable=False),
    sa.Column("plan", _json, nullable=False),
    sa.Column("progress", _json),
    sa.Column("created_at", _UtcTime, nullable=False),
    sa.Column("started_at", _UtcTime),
    sa.Column("ended_at", _UtcTime),
    sa.Column("error_message", sa.Text),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("purge_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("results", _json),
    sa.Column("revision", sa.BigInteger, nullable=False, default=0),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("body_digest", sa.String(64)),
    sa.Index("executions_by_status", "status", "number"),
    sa.Index("executions_by_workflow", "workflow", "number"),
    sa.Index("executions_by_key", "workflow", "idempotency_key"),
)

conductors = sa.Table(
    "conductors",
    metadata,
    sa.Column("fence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("heartbeat_at", _UtcTime, nullable=False),
)

readiness = sa.Table(
    "readiness",
    metadata,
    sa.Column("component", sa.String(255), primary_key=True, comment="a model or data source"),
    sa.Column("ready", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("checked_at", _UtcTime, nullable=False),
)

_EXECUTION_COLUMNS = [
    column
    for column in executions.c
    if column.name not in {"number", "idempotency_key", "body_digest"}
]


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
        with self._writing() as connection:
            metadata.create_all(connection)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """Open a transaction that holds the write lock from its first statement.

        SQLite's write lock comes with BEGIN IMMEDIATE (see `open_engine`), PostgreSQL's is an
        advisory lock: count and insert are one step for all processes.
        """
        with self.engine.connect() as connection:
            connection = connection.execution_options(writing=True)
            with connection.begin():
                if not self.is_sqlite:
                    connection.execute(
                        sa.select(sa.func.pg_advisory_xact_lock(_POSTGRES_WRITE_LOCK))
                    )
                yield connection

    @contextmanager
    def _fenced(self, fence: int) -> Iterator[sa.Connection]:
        """Open a write transaction that only the newest Conductor gets."""
        with self._writing() as connection:
            newest = connection.scalar(sa.select(sa.func.max(conductors.c.fence)))
            if newest != fence:
                raise StaleConductor(f"token {fence} was superseded by {newest}")
            yield connection

    # What the ingress does.

    def submit(
        self,
        execution: Execution,
        *,
        max_queued: int,
        idempotency: Idempotency | None = None,
    ) -> Submitted:
        """Accept an execution, or give back the one that its Idempotency-Key names.

        Raises
        ------
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
            queued: int = connection.execute(
                sa.select(sa.func.count()).where(executions.c.status == Status.QUEUED)
            ).scalar_one()
            if queued >= max_queued:
                raise QueueFull(queued, max_queued)
            connection.execute(
                sa.insert(executions).values(
                    **_row(execution),
                    idempotency_key=idempotency and idempotency.key,
                    body_digest=idempotency and idempotency.body_digest,
                )
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
            sa.select(*_EXECUTION_COLUMNS, executions.c.body_digest)
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
        return _execution(row)

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
        return _execution(row)

    def position(self, execution: Execution) -> int | None:
        """Count the queued executions ahead of this one; None if it does not wait."""
        if execution.status != Status.QUEUED:
            return None
        with self.engine.connect() as connection:
            return self._position(connection, execution)

    def _position(self, connection: sa.Connection, execution: Execution) -> int | None:
        if execution.status != Status.QUEUED:
            return None
        return connection.scalar(_COUNT_AHEAD, {"id": execution.execution_id})

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
        query = sa.select(*_EXECUTION_COLUMNS).where(executions.c.workflow == workflow)
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
            return [_execution(row) for row in connection.execute(query)]

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

    # What the Conductor does. Every call carries its fencing token.

    def issue_fence(self) -> int:
        """Give a new fencing token; calls with older ones are refused from now on."""
        with self._writing() as connection:
            newest = connection.scalar(sa.select(sa.func.max(conductors.c.fence))) or 0
            connection.execute(sa.delete(conductors))
            connection.execute(
                sa.insert(conductors).values(fence=newest + 1, heartbeat_at=datetime.now(UTC))
            )
            return newest + 1

    def beat(self, fence: int) -> None:
        """Say that the Conductor works."""
        with self._fenced(fence) as connection:
            connection.execute(sa.update(conductors).values(heartbeat_at=datetime.now(UTC)))

    def set_readiness(
        self, fence: int, component: str, *, ready: bool, reason: str | None = None
    ) -> None:
        """Record whether a model or data source can be used."""
        values = {"ready": ready, "reason": reason, "checked_at": datetime.now(UTC)}
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        with self._fenced(fence) as connection:
            connection.execute(
                insert(readiness)
                .values(component=component, **values)
                .on_conflict_do_update(index_elements=["component"], set_=values)
            )

    def claim_next(self, fence: int) -> Execution | None:
        """Take the execution that waits longest; it is running from now on."""
        with self._fenced(fence) as connection:
            row = connection.execute(
                sa.select(*_EXECUTION_COLUMNS)
                .where(executions.c.status == Status.QUEUED)
                .order_by(executions.c.number)
                .limit(1)
            ).first()
            if row is None:
                return None
            return self._update(
                connection, _execution(row), status=Status.RUNNING, started_at=datetime.now(UTC)
            )

    def read(self, execution_id: str) -> Execution:
        """Read one execution, whatever its workflow.

        Raises
        ------
        ExecutionNotFound
            If there is none.
        """
        with self.engine.connect() as connection:
            return self._get(connection, execution_id)

    def unfinished(self) -> list[Execution]:
        """Read the executions that run."""
        return self._where(
            executions.c.status.in_([str(Status.RUNNING), str(Status.PENDING_RESULTS)])
        )

    def cancel_requests(self) -> list[str]:
        """Read the ids of running executions that shall end."""
        return [
            execution.execution_id
            for execution in self._where(
                executions.c.cancel_requested,
                executions.c.status.in_([str(Status.RUNNING), str(Status.PENDING_RESULTS)]),
            )
        ]

    def purge_requests(self) -> list[Execution]:
        """Read the finished executions that shall be removed."""
        return self._where(executions.c.purge_requested)

    def _where(self, *conditions: sa.ColumnElement[bool]) -> list[Execution]:
        query = sa.select(*_EXECUTION_COLUMNS).where(*conditions).order_by(executions.c.number)
        with self.engine.connect() as connection:
            return [_execution(row) for row in connection.execute(query)]

    def update(
        self,
        fence: int,
        execution_id: str,
        *,
        status: Status | None = None,
        stage: Stage | None = None,
        progress: Progress | None = None,
        error_message: str | None = None,
        results: dict[str, Any] | None = None,
    ) -> Execution:
        """Record what became of an execution; a finished state also notes when.

        Raises
        ------
        StaleConductor
            If another Conductor has taken over.
        IllegalTransition
            If `status` does not follow the present one.
        """
        given = {
            "status": status,
            "stage": stage,
            "progress": progress and progress.model_dump(mode="json"),
            "error_message": error_message,
            "results": results,
        }
        values: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
        with self._fenced(fence) as connection:
            execution = self._get(connection, execution_id)
            if status in FINISHED and execution.status not in FINISHED:
                values["ended_at"] = datetime.now(UTC)
            return self._update(connection, execution, **values)

    def remove(self, fence: int, execution_id: str) -> None:
        """Forget an execution."""
        with self._fenced(fence) as connection:
            connection.execute(
                sa.delete(executions).where(executions.c.execution_id == execution_id)
            )

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


_SELECT_ONE = sa.select(*_EXECUTION_COLUMNS).where(executions.c.execution_id == sa.bindparam("id"))
_SELECT_REVISION = sa.select(executions.c.revision).where(
    executions.c.execution_id == sa.bindparam("id")
)
_SQLITE_REVISION = f"SELECT revision FROM {executions.name} WHERE execution_id = ?"  # noqa: S608
_COUNT_AHEAD = sa.select(sa.func.count()).where(
    executions.c.status == Status.QUEUED,
    executions.c.number
    < sa.select(executions.c.number)
    .where(executions.c.execution_id == sa.bindparam("id"))
    .scalar_subquery(),
)


def _row(execution: Execution) -> dict[str, Any]:
    row = execution.model_dump()
    row["progress"] = execution.progress and execution.progress.model_dump(mode="json")
    return row


def _execution(row: Any) -> Execution:
    # Rows were validated when they were written; `model_construct` would leave enums as text.
    return Execution.model_validate(
        {column.name: getattr(row, column.name) for column in _EXECUTION_COLUMNS}
    )


def open_engine(url: str) -> sa.Engine:
    """Open a database so that concurrent processes can use it.

    Parameters
    ----------
    url : str
        ``sqlite:///path`` or ``postgresql+psycopg://…``.
    """
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_size=8, max_overflow=8, pool_pre_ping=True)
    database = sa.make_url(url).database
    if database:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        url,
        pool_size=8,
        max_overflow=8,
        # The driver's own transaction control would start a transaction only at the first write.
        connect_args={"timeout": LOCK_WAIT_S, "isolation_level": None, "check_same_thread": False},
    )

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # WAL: readers never wait for the writer. FULL: an accepted execution survives a power cut.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA busy_timeout={int(LOCK_WAIT_S * 1000)}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # BEGIN IMMEDIATE takes the write lock at once: a transaction that counts, then inserts,
        # could otherwise be overtaken between the two.
        writing = connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine
