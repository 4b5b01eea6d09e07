"""The execution store as the Conductor writes it: every write carries its fencing token."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from deployments._execution_tables import (
    EXECUTION_COLUMNS,
    conductors,
    descriptions,
    execution_of,
    executions,
    readiness,
)
from deployments.execution_store import ExecutionStore
from workflows.custom import is_custom
from workflows.errors import StaleConductor
from workflows.execution import FINISHED, Execution, Progress, Stage, Status


class Waiting(NamedTuple):
    """An execution that waits to be begun."""

    execution_id: str
    workflow: str
    created_at: datetime
    retries: int


class ConductedStore(ExecutionStore):
    """An execution store with what only the Conductor does."""

    @contextmanager
    def _fenced(self, fence: int) -> Iterator[sa.Connection]:
        """Open a write transaction that only the newest Conductor gets."""
        with self._writing() as connection:
            newest = connection.scalar(sa.select(sa.func.max(conductors.c.fence)))
            if newest != fence:
                raise StaleConductor(f"token {fence} was superseded by {newest}")
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

    def claim_next(self, fence: int, full: Collection[str] = ()) -> Execution | None:
        """Take the execution that waits longest; it is running from now on.

        Parameters
        ----------
        full : collection of str
            Workflows of which no more can run now.
        """
        with self._fenced(fence) as connection:
            row = connection.execute(
                sa.select(*EXECUTION_COLUMNS)
                .where(executions.c.status == Status.QUEUED, executions.c.workflow.notin_(full))
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
