"""The execution store as the Conductor writes it: every write carries its fencing token."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from deployments.store.disk_usage import NOTHING, changed
from deployments.store.executions import IDEMPOTENCY_WINDOW, ExecutionStore
from deployments.store.schema import (
    EXECUTION_COLUMNS,
    conductors,
    descriptions,
    execution_of,
    executions,
    forgotten,
    readiness,
)
from workflows.custom import is_custom
from workflows.errors import ExecutionNotFound, StaleConductor
from workflows.execution import FINISHED, Execution, Progress, Stage, Status
from workflows.manifest import Manifest
from workflows.readiness import ComponentStatus, NotReady, Ready


class Waiting(NamedTuple):
    """An execution that waits to be begun."""

    execution_id: str
    workflow: str
    created_at: datetime
    retries: int


class ConductorStore(ExecutionStore):
    """An execution store with what only the Conductor does."""

    @contextmanager
    def _fenced(self, fence: int) -> Iterator[sa.Connection]:
        """Open a write transaction that only the newest Conductor gets."""
        with self._writing() as connection:
            newest = connection.scalar(sa.select(sa.func.max(conductors.c.fence)))
            if newest != fence:
                raise StaleConductor(fence, newest)
            yield connection

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

    def set_readiness(self, fence: int, component: str, status: ComponentStatus) -> None:
        """Record whether a component can be used."""
        values = {
            "ready": isinstance(status, Ready),
            "reason": status.reason if isinstance(status, NotReady) else None,
            "checked_at": datetime.now(UTC),
        }
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        with self._fenced(fence) as connection:
            connection.execute(
                insert(readiness)
                .values(component=component, **values)
                .on_conflict_do_update(index_elements=["component"], set_=values)
            )

    def describe(self, fence: int, workflow: str, description: Mapping[str, Any]) -> None:
        """Record how a user's workflow describes itself."""
        values = {"description": dict(description)}
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        with self._fenced(fence) as connection:
            connection.execute(
                insert(descriptions)
                .values(workflow=workflow, **values)
                .on_conflict_do_update(index_elements=["workflow"], set_=values)
            )

    def claim_next(
        self, fence: int, full: Collection[str] = (), ending: Collection[str] = ()
    ) -> Execution | None:
        """Take the execution that waits longest; it is running from now on.

        Parameters
        ----------
        full : collection of str
            Workflows of which no more can run now.
        ending : collection of str
            Executions that an earlier attempt has not let go of yet.
        """
        with self._fenced(fence) as connection:
            row = connection.execute(
                sa.select(*EXECUTION_COLUMNS)
                .where(
                    executions.c.status == Status.QUEUED,
                    executions.c.workflow.notin_(full),
                    executions.c.execution_id.notin_(ending),
                )
                .order_by(executions.c.number)
                .limit(1)
            ).first()
            if row is None:
                return None
            execution = execution_of(row)
            # A user's class does all in one stage: its first is told here, without a second write.
            first = Stage.INFERENCE if is_custom(execution.plan) else None
            return self._update(
                connection,
                execution,
                status=Status.RUNNING,
                stage=execution.stage or first,
                started_at=datetime.now(UTC),
            )

    def waiting(self) -> list[Waiting]:
        """Read what waits to be begun, the longest first."""
        query = (
            sa.select(
                executions.c.execution_id,
                executions.c.workflow,
                executions.c.created_at,
                executions.c.retries,
            )
            .where(executions.c.status == Status.QUEUED)
            .order_by(executions.c.number)
        )
        with self.engine.connect() as connection:
            return [Waiting(*row) for row in connection.execute(query)]

    def unfinished(self) -> list[Execution]:
        """Read the executions that run."""
        return self._where(
            executions.c.status.in_([str(Status.RUNNING), str(Status.PENDING_RESULTS)])
        )

    def cancel_requests(self) -> list[Execution]:
        """Read the running executions that shall end."""
        return self._where(
            executions.c.cancel_requested,
            executions.c.status.in_([str(Status.RUNNING), str(Status.PENDING_RESULTS)]),
        )

    def purge_requests(self) -> list[Execution]:
        """Read the finished executions that shall be removed."""
        return self._where(executions.c.purge_requested)

    def _where(self, *conditions: sa.ColumnElement[bool]) -> list[Execution]:
        query = sa.select(*EXECUTION_COLUMNS).where(*conditions).order_by(executions.c.number)
        with self.engine.connect() as connection:
            return [execution_of(row) for row in connection.execute(query)]

    def update(
        self,
        fence: int,
        execution_id: str,
        *,
        status: Status | None = None,
        stage: Stage | None = None,
        progress: Progress | None = None,
        error_message: str | None = None,
        results: Manifest | None = None,
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
            "results": results and results.model_dump(mode="json"),
        }
        values: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
        with self._fenced(fence) as connection:
            execution = self._get(connection, execution_id)
            if status in FINISHED and execution.status not in FINISHED:
                values["ended_at"] = datetime.now(UTC)
            values |= changed(execution, status, progress, results)
            return self._update(connection, execution, **values)

    def remove(self, fence: int, execution_id: str) -> None:
        """Forget an execution, but for its id: files that come late are known to be its."""
        with self._fenced(fence) as connection:
            self._remove(connection, [execution_id])

    def _remove(self, connection: sa.Connection, execution_ids: Sequence[str]) -> None:
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        now = datetime.now(UTC)
        connection.execute(
            insert(forgotten).on_conflict_do_nothing(),
            [{"execution_id": each, "forgotten_at": now} for each in execution_ids],
        )
        connection.execute(
            sa.delete(executions).where(executions.c.execution_id.in_(execution_ids))
        )

    # Housekeeping, see `deployments.conductor.retention`.

    def due(self, ended_before: datetime, limit: int) -> list[str]:
        """Read which executions are to expire, those that ended first."""
        return self._ids(
            executions.c.status.in_([str(status) for status in FINISHED - {Status.EXPIRED}]),
            executions.c.ended_at < ended_before,
            executions.c.purge_requested.is_(False),
            order=executions.c.ended_at,
            limit=limit,
        )

    def expire(self, fence: int, execution_id: str, ended_before: datetime) -> None:
        """Let an execution expire, unless it was tried again meanwhile; its results are gone."""
        with self._fenced(fence) as connection:
            execution = self._get(connection, execution_id)
            if execution.status not in FINISHED - {Status.EXPIRED} or (
                execution.ended_at is None or execution.ended_at >= ended_before
            ):
                return
            self._update(connection, execution, status=Status.EXPIRED, progress=None, results=None)

    def expired(self, limit: int, but: Collection[str] = ()) -> list[Execution]:
        """Read the expired executions that may have files or records of DBOS."""
        query = (
            sa.select(*EXECUTION_COLUMNS)
            .where(
                executions.c.status == Status.EXPIRED,
                executions.c.removed_at.is_(None),
                executions.c.execution_id.notin_(but),
            )
            .limit(limit)
        )
        with self.engine.connect() as connection:
            return [execution_of(row) for row in connection.execute(query)]

    def mark_left_nothing(self, fence: int, execution_id: str) -> None:
        """Note that what a failed execution had written is removed, unless it is tried again."""
        with self._fenced(fence) as connection:
            with suppress(ExecutionNotFound):  # purged meanwhile
                execution = self._get(connection, execution_id)
                if execution.status == Status.FAILED and execution.results is None:
                    connection.execute(
                        sa.update(executions)
                        .where(executions.c.execution_id == execution_id)
                        .values(NOTHING)
                    )

    def mark_removed(self, fence: int, execution_id: str) -> None:
        """Note that nothing is left of an expired execution but its row."""
        with self._fenced(fence) as connection:
            connection.execute(
                sa.update(executions)
                .where(
                    executions.c.execution_id == execution_id,
                    executions.c.status == Status.EXPIRED,
                )
                .values(removed_at=datetime.now(UTC), **NOTHING)
            )

    def forget(self, fence: int, removed_before: datetime, limit: int) -> int:
        """Forget expired executions; says how many.

        None before its Idempotency-Key has lost its meaning: a client that repeats a request
        within that time is told of the execution that there was.
        """
        old = self._ids(
            executions.c.status == Status.EXPIRED,
            executions.c.removed_at < removed_before,
            executions.c.created_at < datetime.now(UTC) - IDEMPOTENCY_WINDOW,
            order=executions.c.removed_at,
            limit=limit,
        )
        if old:
            with self._fenced(fence) as connection:
                self._remove(connection, old)
        return len(old)

    def ended(self, execution_ids: Collection[str], before: datetime) -> dict[str, Status | None]:
        """Read which of some executions ended before a time: their status, None if forgotten.

        Those that nobody has ever heard of are left out, like those that may go on.
        """
        ids = list(execution_ids)
        rows = sa.select(executions.c.execution_id, executions.c.status).where(
            executions.c.execution_id.in_(ids),
            executions.c.status.in_([str(status) for status in FINISHED]),
            executions.c.ended_at < before,
            executions.c.purge_requested.is_(False),
        )
        gone = sa.select(forgotten.c.execution_id).where(forgotten.c.execution_id.in_(ids))
        with self.engine.connect() as connection:
            found: dict[str, Status | None] = dict.fromkeys(connection.scalars(gone))
            return found | {row[0]: Status(row[1]) for row in connection.execute(rows)}

    def known(self, execution_ids: Collection[str]) -> set[str]:
        """Read which of some executions have a row, or had one."""
        ids = list(execution_ids)
        with self.engine.connect() as connection:
            return {
                execution_id
                for table in (executions, forgotten)
                for execution_id in connection.scalars(
                    sa.select(table.c.execution_id).where(table.c.execution_id.in_(ids))
                )
            }

    def forget_ids(self, fence: int, before: datetime) -> None:
        """Forget for good which executions there were."""
        with self._fenced(fence) as connection:
            connection.execute(sa.delete(forgotten).where(forgotten.c.forgotten_at < before))

    def _ids(
        self, *conditions: sa.ColumnElement[bool], order: sa.Column[Any], limit: int
    ) -> list[str]:
        query = sa.select(executions.c.execution_id).where(*conditions).order_by(order).limit(limit)
        with self.engine.connect() as connection:
            return list(connection.scalars(query))
