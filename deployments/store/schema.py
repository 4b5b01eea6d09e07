"""The tables of the execution store, and how its databases are opened."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from workflows.execution import Execution

LOCK_WAIT_S = 30.0

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
    sa.Column("retries", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("revision", sa.BigInteger, nullable=False, default=0),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("body_digest", sa.String(64)),
    sa.Column(
        "disk_bytes",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="what it takes of the disk: at most while it waits or runs, then what is kept",
    ),
    sa.Column(
        "unwritten_bytes",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="what of that is still to be written",
    ),
    sa.Column("removed_at", _UtcTime, comment="when nothing was left but this row"),
    sa.Index("executions_by_status", "status", "number"),
    sa.Index("executions_by_workflow", "workflow", "number"),
    sa.Index("executions_by_key", "workflow", "idempotency_key"),
    # Rows are wide: without these, what the Conductor asks at every nudge and what metrics count
    # would read them all.
    sa.Index(
        "executions_to_purge",
        "number",
        sqlite_where=sa.text("purge_requested = 1"),
        postgresql_where=sa.text("purge_requested"),
    ),
    sa.Index("executions_by_workflow_and_status", "workflow", "status", "number"),
    # What is summed up at a submit lies in these indexes alone.
    sa.Index(
        "executions_on_disk",
        "disk_bytes",
        sqlite_where=sa.text("disk_bytes > 0"),
        postgresql_where=sa.text("disk_bytes > 0"),
    ),
    sa.Index(
        "executions_unwritten",
        "unwritten_bytes",
        sqlite_where=sa.text("unwritten_bytes > 0"),
        postgresql_where=sa.text("unwritten_bytes > 0"),
    ),
    sa.Index("executions_by_end", "status", "ended_at"),
    sa.Index("executions_by_removal", "status", "removed_at"),
)

forgotten = sa.Table(
    "forgotten",
    metadata,
    sa.Column("execution_id", sa.String(64), primary_key=True, comment="that had a row once"),
    sa.Column("forgotten_at", _UtcTime, nullable=False),
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

descriptions = sa.Table(
    "descriptions",
    metadata,
    sa.Column("workflow", sa.String(255), primary_key=True, comment="a user's own"),
    sa.Column("description", _json, nullable=False),
)

EXECUTION_COLUMNS = [
    column
    for column in executions.c
    if column.name
    not in {
        *("number", "idempotency_key", "body_digest"),
        *("disk_bytes", "unwritten_bytes", "removed_at"),
    }
]


def create_tables(connection: sa.Connection) -> None:
    """Make the tables, and bring those of an earlier release up to date."""
    metadata.create_all(connection)
    known = {column["name"] for column in sa.inspect(connection).get_columns(executions.name)}
    missing = [column for column in executions.c if column.name not in known]
    for column in missing:
        definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {executions.name} ADD COLUMN {definition}")
    if executions.c.disk_bytes in missing:
        size = executions.c.results[("totals", "bytes")].as_string()
        connection.execute(
            sa.update(executions).values(
                disk_bytes=sa.func.coalesce(sa.cast(size, sa.BigInteger), 0)
            )
        )
    if missing:
        for index in executions.indexes:
            index.create(connection, checkfirst=True)


def row_of(execution: Execution) -> dict[str, Any]:
    """Give the columns of a record."""
    row = execution.model_dump()
    for name, document in (("progress", execution.progress), ("results", execution.results)):
        row[name] = document and document.model_dump(mode="json")
    return row


def execution_of(row: Any) -> Execution:
    """Give the record in a row."""
    # Rows were validated when they were written; `model_construct` would leave enums as text.
    return Execution.model_validate(
        {column.name: getattr(row, column.name) for column in EXECUTION_COLUMNS}
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
