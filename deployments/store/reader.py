"""Queries of the execution store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from deployments.store.database import Database
from deployments.store.rows import (
    EXECUTION_COLUMNS,
    list_executions,
    read_execution,
    read_manifest,
)
from deployments.store.schema import (
    conductors,
    deleted_executions,
    descriptions,
    executions,
    readiness,
)
from workflows.errors import ExecutionNotFound
from workflows.execution import Execution, Status
from workflows.manifest import Manifest


@dataclass(frozen=True)
class Readiness:
    """Whether a model or data source can be used."""

    ready: bool
    reason: str | None
    checked_at: datetime


class ExecutionReader(Database):
    """Reads executions, readiness and descriptions.

    Methods are synchronous and thread-safe. On SQLite a read takes a fraction of a millisecond;
    from an event loop, call PostgreSQL in a thread.
    """

    def get(self, workflow: str, execution_id: str) -> Execution:
        """Return one execution of a workflow.

        Raises
        ------
        ExecutionNotFound
            If that workflow has no such execution.
        """
        with self.engine.connect() as connection:
            return read_execution(connection, execution_id, workflow)

    def read(self, execution_id: str) -> Execution:
        """Return one execution of any workflow; raises `ExecutionNotFound`."""
        with self.engine.connect() as connection:
            return read_execution(connection, execution_id)

    def was_deleted(self, execution_id: str) -> bool:
        """Return whether an execution's row was deleted, as far as ids are kept."""
        query = sa.select(deleted_executions.c.execution_id).where(
            deleted_executions.c.execution_id == execution_id
        )
        with self.engine.connect() as connection:
            return connection.scalar(query) is not None

    def manifest(self, execution_id: str) -> Manifest | None:
        """Return the manifest of an execution's results; None if it has none."""
        with self.engine.connect() as connection:
            return read_manifest(connection, execution_id)

    def position(self, execution: Execution) -> int | None:
        """Return the number of queued executions ahead in the same workflow; None if not queued.

        Those of other workflows do not delay it: each workflow has its own replicas.
        """
        if execution.status != Status.QUEUED:
            return None
        with self.engine.connect() as connection:
            return queue_position(connection, execution)

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
        """Return executions of a workflow, newest first.

        Parameters
        ----------
        before : str, optional
            An execution id: the list continues with the executions accepted before it.

        Raises
        ------
        ExecutionNotFound
            If `before` is no execution of that workflow.
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
            return list_executions(connection, query)

    def revisions(self, execution_ids: Sequence[str]) -> dict[str, int]:
        """Return the revisions of many executions in one query; unknown ids are left out."""
        query = sa.select(executions.c.execution_id, executions.c.revision).where(
            executions.c.execution_id.in_(execution_ids)
        )
        with self.engine.connect() as connection:
            return {row.execution_id: row.revision for row in connection.execute(query)}

    def revision(self, execution_id: str) -> int | None:
        """Return the revision of one execution; None if it does not exist.

        Called for every poll of a client. On SQLite it bypasses SQLAlchemy, whose transaction
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
        """Return the number of executions by workflow and status."""
        query = sa.select(executions.c.workflow, executions.c.status, sa.func.count()).group_by(
            executions.c.workflow, executions.c.status
        )
        with self.engine.connect() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(query)}

    def conductor_heartbeat(self) -> datetime | None:
        """Return the time of the last heartbeat of a Conductor; None if there never was one."""
        with self.engine.connect() as connection:
            newest = sa.select(sa.func.max(conductors.c.heartbeat_at))
            heartbeat: datetime | None = connection.scalar(newest)
            return heartbeat

    def readiness(self) -> dict[str, Readiness]:
        """Return the readiness of models and data sources, by name."""
        with self.engine.connect() as connection:
            return {
                row.component: Readiness(row.ready, row.reason, row.checked_at)
                for row in connection.execute(sa.select(readiness))
            }

    def description(self, workflow: str) -> dict[str, Any] | None:
        """Return the latest description of a model or a user's workflow; None if there is none."""
        query = sa.select(descriptions.c.description).where(descriptions.c.workflow == workflow)
        with self.engine.connect() as connection:
            description: dict[str, Any] | None = connection.scalar(query)
            return description


def queue_position(connection: sa.Connection, execution: Execution) -> int | None:
    """Return the number of queued executions ahead in the same workflow; None if not queued."""
    if execution.status != Status.QUEUED:
        return None
    return connection.scalar(
        _COUNT_AHEAD, {"id": execution.execution_id, "workflow": execution.workflow}
    )


_SELECT_REVISION = sa.select(executions.c.revision).where(
    executions.c.execution_id == sa.bindparam("id")
)
_SQLITE_REVISION = f"SELECT revision FROM {executions.name} WHERE execution_id = ?"  # noqa: S608
_COUNT_AHEAD = sa.select(sa.func.count()).where(
    executions.c.status == Status.QUEUED,
    executions.c.workflow == sa.bindparam("workflow"),
    executions.c.number
    < sa.select(executions.c.number)
    .where(executions.c.execution_id == sa.bindparam("id"))
    .scalar_subquery(),
)
