"""The tables of the execution store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
_json = sa.JSON()


class _UtcTime(sa.TypeDecorator[datetime]):
    """A time as microseconds since 1970: the same in both dialects, and sortable."""

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
    sa.Column("results_summary", sa.JSON(none_as_null=True), key="results"),
    sa.Column(
        "results",
        _json,
        key="former_results",
        comment="manifest that an earlier release wrote; counts while there is no summary",
    ),
    sa.Column("retries", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("revision", sa.BigInteger, nullable=False, default=0),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("body_digest", sa.String(64)),
    sa.Column(
        "disk_bytes",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="disk usage: the upper bound while queued or running, then of what is kept",
    ),
    sa.Column(
        "unwritten_bytes",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="the part of disk_bytes that is still to be written",
    ),
    sa.Column("removed_at", _UtcTime, comment="when nothing was left but this row"),
    sa.Index("executions_by_status", "status", "number"),
    sa.Index("executions_by_workflow", "workflow", "number"),
    sa.Index("executions_by_key", "workflow", "idempotency_key"),
    # Rows are wide: without these two, the Conductor's query at every nudge and the counts for
    # metrics would read all of them.
    sa.Index(
        "executions_to_purge",
        "number",
        sqlite_where=sa.text("purge_requested = 1"),
        postgresql_where=sa.text("purge_requested"),
    ),
    sa.Index("executions_by_workflow_and_status", "workflow", "status", "number"),
    # The sums at every submit are computed from these two alone.
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

deleted_executions = sa.Table(
    "forgotten",
    metadata,
    sa.Column("execution_id", sa.String(64), primary_key=True, comment="that had a row once"),
    sa.Column("forgotten_at", _UtcTime, key="deleted_at", nullable=False),
)

# Apart from the executions, whose rows are read all the time: a manifest may have megabytes.
manifests = sa.Table(
    "manifests",
    metadata,
    sa.Column("execution_id", sa.String(64), primary_key=True),
    sa.Column("manifest", _json, nullable=False),
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


def create_tables(connection: sa.Connection) -> None:
    """Create the tables, and bring those of an earlier release up to date."""
    metadata.create_all(connection)
    existing = {column["name"] for column in sa.inspect(connection).get_columns(executions.name)}
    missing = [column for column in executions.c if column.name not in existing]
    for column in missing:
        definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {executions.name} ADD COLUMN {definition}")
    if executions.c.disk_bytes in missing:
        size = executions.c.former_results[("totals", "bytes")].as_string()
        disk_bytes = sa.func.coalesce(sa.cast(size, sa.BigInteger), 0)
        connection.execute(sa.update(executions).values(disk_bytes=disk_bytes))
    if missing:
        for index in executions.indexes:
            index.create(connection, checkfirst=True)
