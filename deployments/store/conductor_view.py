"""The execution store as the Conductor uses it: every write carries its fencing token."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from deployments.store import disk_usage
from deployments.store.database import upsert
from deployments.store.executions import ExecutionStore
from deployments.store.rows import (
    EXECUTION_COLUMNS,
    copy_former_manifests,
    delete_executions,
    execution_of,
    list_executions,
    read_execution,
    update_execution,
    with_former_manifests,
)
from deployments.store.schema import conductors, descriptions, executions, readiness
from workflows.custom import is_custom
from workflows.errors import ExecutionNotFound, StaleConductor
from workflows.execution import FINISHED, Execution, Progress, Stage, Status
from workflows.manifest import Manifest
from workflows.readiness import ComponentStatus, NotReady, Ready


class QueuedExecution(NamedTuple):
    """An execution in the queue."""

    execution_id: str
    workflow: str
    created_at: datetime
    retries: int


class ConductorStore(ExecutionStore):
    """An execution store with the methods that only the Conductor uses.

    Those with a fencing token raise `StaleConductor` if it is not the newest.
    """

    @contextmanager
    def fenced(self, fence: int) -> Iterator[sa.Connection]:
        """Open a write transaction for the Conductor with the newest fencing token."""
        with self.writing() as connection:
            newest = connection.scalar(sa.select(sa.func.max(conductors.c.fence)))
            if newest != fence:
                raise StaleConductor(fence, newest)
            yield connection

    def issue_fence(self) -> int:
        """Return a new fencing token; writes with older ones are refused from now on."""
        with self.writing() as connection:
            newest = connection.scalar(sa.select(sa.func.max(conductors.c.fence))) or 0
            connection.execute(sa.delete(conductors))
            connection.execute(
                sa.insert(conductors).values(fence=newest + 1, heartbeat_at=datetime.now(UTC))
            )
            return newest + 1

    def record_heartbeat(self, fence: int) -> None:
        """Record that the Conductor is alive."""
        with self.fenced(fence) as connection:
            connection.execute(sa.update(conductors).values(heartbeat_at=datetime.now(UTC)))

    def set_readiness(self, fence: int, component: str, status: ComponentStatus) -> None:
        """Record whether a component can be used."""
        with self.fenced(fence) as connection:
            upsert(
                connection,
                readiness,
                "component",
                component=component,
                ready=isinstance(status, Ready),
                reason=status.reason if isinstance(status, NotReady) else None,
                checked_at=datetime.now(UTC),
            )

    def set_description(self, fence: int, workflow: str, description: Mapping[str, Any]) -> None:
        """Record the description of a model or a user's workflow, by its name."""
        with self.fenced(fence) as connection:
            values = {"workflow": workflow, "description": dict(description)}
            upsert(connection, descriptions, "workflow", **values)

    def claim_next(
        self, fence: int, full: Collection[str] = (), ending: Collection[str] = ()
    ) -> Execution | None:
        """Set the execution that has been queued longest to running, and return it.

        Parameters
        ----------
        full : collection of str
            Workflows of which no more executions can run now.
        ending : collection of str
            Executions whose earlier attempt has not ended yet.
        """
        with self.fenced(fence) as connection:
            row = connection.execute(
                sa.select(*EXECUTION_COLUMNS)
                .where(
                    executions.c.status == Status.QUEUED,
                    executions.c.cancel_requested.is_(False),
                    executions.c.workflow.notin_(full),
                    executions.c.execution_id.notin_(ending),
                )
                .order_by(executions.c.number)
                .limit(1)
            ).first()
            if row is None:
                return None
            execution = execution_of(row)
            # A user's class has one stage; setting it here saves a second write.
            first_stage = Stage.INFERENCE if is_custom(execution.plan) else None
            return update_execution(
                connection,
                execution,
                status=Status.RUNNING,
                stage=execution.stage or first_stage,
                started_at=max(datetime.now(UTC), execution.created_at),
            )

    def queued(self) -> list[QueuedExecution]:
        """Return the queue, longest wait first."""
        columns = [executions.c[name] for name in QueuedExecution._fields]
        queued = sa.select(*columns).where(executions.c.status == Status.QUEUED)
        with self.engine.connect() as connection:
            rows = connection.execute(queued.order_by(executions.c.number))
            return [QueuedExecution(*row) for row in rows]

    def running(self) -> list[Execution]:
        """Return the executions that were claimed and have not finished."""
        return self._where(_IS_RUNNING)

    def cancel_requests(self) -> list[Execution]:
        """Return the unfinished executions whose cancellation was requested."""
        return self._where(executions.c.cancel_requested, executions.c.status.in_(_UNFINISHED))

    def purge_requests(self) -> list[Execution]:
        """Return the finished executions whose removal was requested."""
        return self._where(executions.c.purge_requested)

    def _where(self, *conditions: sa.ColumnElement[bool]) -> list[Execution]:
        query = sa.select(*EXECUTION_COLUMNS).where(*conditions).order_by(executions.c.number)
        with self.engine.connect() as connection:
            return list_executions(connection, query)

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
        keeps_files: bool = False,
    ) -> Execution:
        """Update an execution's record; a finished status also sets the time of the end.

        Parameters
        ----------
        keeps_files : bool
            Whether files of a cancelled execution are still to be removed.

        Raises
        ------
        IllegalTransition
            If the execution's status cannot become `status`.
        """
        arguments = {
            "status": status,
            "stage": stage,
            "progress": progress and progress.model_dump(mode="json"),
            "error_message": error_message,
            "results": results,
        }
        values: dict[str, Any] = {name: v for name, v in arguments.items() if v is not None}
        with self.fenced(fence) as connection:
            execution = read_execution(connection, execution_id)
            if status in FINISHED and execution.status not in FINISHED:
                # Expiry counts from here: a clock that is behind must not make it older than it is.
                began = execution.started_at or execution.created_at
                values["ended_at"] = max(datetime.now(UTC), began)
            values |= disk_usage.after_update(execution, status, progress, results)
            if status == Status.CANCELLED and not keeps_files:
                values |= disk_usage.NO_USAGE
            return update_execution(connection, execution, **values)

    def count_attempt(self, fence: int, execution_id: str) -> Execution:
        """Count another attempt at a running execution, and return its record."""
        with self.fenced(fence) as connection:
            execution = read_execution(connection, execution_id)
            return update_execution(connection, execution, retries=execution.retries + 1)

    def mark_files_removed(self, fence: int, execution_id: str) -> None:
        """Record that a failed or cancelled execution no longer has files, unless retried."""
        with self.fenced(fence) as connection:
            with suppress(ExecutionNotFound):  # purged meanwhile
                execution = read_execution(connection, execution_id)
                has_ended = execution.status in (Status.FAILED, Status.CANCELLED)
                if has_ended and execution.results is None:
                    row = executions.c.execution_id == execution_id
                    update = sa.update(executions).where(row)
                    connection.execute(update.values(disk_usage.NO_USAGE))

    def with_former_manifests(self) -> list[str]:
        """Return the executions whose manifest only an earlier release has written."""
        with self.engine.connect() as connection:
            return with_former_manifests(connection)

    def copy_former_manifests(self, fence: int, execution_ids: Sequence[str]) -> None:
        """Copy manifests of an earlier release to where this one has them."""
        with self.fenced(fence) as connection:
            copy_former_manifests(connection, execution_ids)

    def delete(self, fence: int, execution_id: str) -> None:
        """Delete an execution's row."""
        with self.fenced(fence) as connection:
            delete_executions(connection, [execution_id])


_RUNNING = [str(Status.RUNNING), str(Status.PENDING_RESULTS)]
_IS_RUNNING = executions.c.status.in_(_RUNNING)
_UNFINISHED = [*_RUNNING, str(Status.QUEUED)]
