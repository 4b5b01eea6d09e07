"""The execution store as the Conductor's retention uses it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from deployments.store.conductor_view import ConductorStore
from deployments.store.disk_usage import NO_USAGE
from deployments.store.rows import (
    EXECUTION_COLUMNS,
    delete_executions,
    list_executions,
    read_execution,
    update_execution,
)
from deployments.store.schema import deleted_executions, executions
from workflows.execution import FINISHED, Execution, Status


class RetentionView:
    """Expires executions, deletes their rows, and distinguishes leftovers from other files."""

    def __init__(self, store: ConductorStore) -> None:
        self._store = store

    def expirable(self, ended_before: datetime, limit: int) -> list[str]:
        """Return the ids of executions that are to expire, in order of their end."""
        return self._ids(
            executions.c.status.in_([str(status) for status in FINISHED - {Status.EXPIRED}]),
            executions.c.ended_at < ended_before,
            executions.c.purge_requested.is_(False),
            order=executions.c.ended_at,
            limit=limit,
        )

    def expire(self, fence: int, execution_id: str, ended_before: datetime) -> None:
        """Mark an execution as expired and drop its results, unless it was retried meanwhile."""
        with self._store.fenced(fence) as connection:
            execution = read_execution(connection, execution_id)
            if execution.status not in FINISHED - {Status.EXPIRED} or (
                execution.ended_at is None or execution.ended_at >= ended_before
            ):
                return
            update_execution(
                connection, execution, status=Status.EXPIRED, progress=None, results=None
            )

    def expired(self, limit: int, excluded: Collection[str] = ()) -> list[Execution]:
        """Return expired executions that may have files or records of DBOS."""
        query = (
            sa.select(*EXECUTION_COLUMNS)
            .where(
                executions.c.status == Status.EXPIRED,
                executions.c.removed_at.is_(None),
                executions.c.execution_id.notin_(excluded),
            )
            .limit(limit)
        )
        with self._store.engine.connect() as connection:
            return list_executions(connection, query)

    def mark_only_row_left(self, fence: int, execution_id: str) -> None:
        """Record that nothing is left of an expired execution but its row."""
        with self._store.fenced(fence) as connection:
            connection.execute(
                sa.update(executions)
                .where(
                    executions.c.execution_id == execution_id, executions.c.status == Status.EXPIRED
                )
                .values(removed_at=datetime.now(UTC), **NO_USAGE)
            )

    def delete_expired(
        self, fence: int, removed_before: datetime, created_before: datetime, limit: int
    ) -> int:
        """Delete rows of expired executions, and return how many.

        A row is kept while its Idempotency-Key is valid: a client that repeats the request must
        get the execution that it was used for. Keys of rows that were `created_before` are not.
        """
        ids = self._ids(
            executions.c.status == Status.EXPIRED,
            executions.c.removed_at < removed_before,
            executions.c.created_at < created_before,
            order=executions.c.removed_at,
            limit=limit,
        )
        if ids:
            with self._store.fenced(fence) as connection:
                delete_executions(connection, ids)
        return len(ids)

    def ended_before(
        self, execution_ids: Collection[str], time: datetime
    ) -> dict[str, Status | None]:
        """Return the status of those executions that ended before a time; None if deleted.

        Executions that this store never had, or that may still be resumed, are left out.
        """
        ids = list(execution_ids)
        ended = sa.select(executions.c.execution_id, executions.c.status).where(
            executions.c.execution_id.in_(ids),
            executions.c.status.in_([str(status) for status in FINISHED]),
            executions.c.ended_at < time,
            executions.c.purge_requested.is_(False),
        )
        deleted = sa.select(deleted_executions.c.execution_id).where(
            deleted_executions.c.execution_id.in_(ids)
        )
        with self._store.engine.connect() as connection:
            statuses: dict[str, Status | None] = dict.fromkeys(connection.scalars(deleted))
            return statuses | {row[0]: Status(row[1]) for row in connection.execute(ended)}

    def known(self, execution_ids: Collection[str]) -> set[str]:
        """Return those executions that have a row, or had one."""
        ids = list(execution_ids)
        with self._store.engine.connect() as connection:
            return {
                execution_id
                for table in (executions, deleted_executions)
                for execution_id in connection.scalars(
                    sa.select(table.c.execution_id).where(table.c.execution_id.in_(ids))
                )
            }

    def delete_ids(self, fence: int, deleted_before: datetime) -> None:
        """Delete the ids of executions whose rows were deleted before a time."""
        with self._store.fenced(fence) as connection:
            connection.execute(
                sa.delete(deleted_executions).where(
                    deleted_executions.c.deleted_at < deleted_before
                )
            )

    def _ids(
        self, *conditions: sa.ColumnElement[bool], order: sa.Column[Any], limit: int
    ) -> list[str]:
        query = sa.select(executions.c.execution_id).where(*conditions).order_by(order).limit(limit)
        with self._store.engine.connect() as connection:
            return list(connection.scalars(query))
