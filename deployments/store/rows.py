"""Reads, updates and deletes rows of executions within a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from deployments.store.schema import deleted_executions, executions, manifests
from workflows.errors import ExecutionNotFound
from workflows.execution import Execution, check_transition
from workflows.manifest import Manifest, summarize

EXECUTION_COLUMNS = [
    column
    for column in executions.c
    if column.name
    not in {
        *("number", "idempotency_key", "body_digest"),
        *("disk_bytes", "unwritten_bytes", "removed_at"),
    }
]
_FIELDS = [column.key for column in EXECUTION_COLUMNS]
_SELECT_ONE = sa.select(*EXECUTION_COLUMNS).where(executions.c.execution_id == sa.bindparam("id"))


def row_of(execution: Execution) -> dict[str, Any]:
    """Return the columns of a record."""
    row = execution.model_dump()
    for name, document in (("progress", execution.progress), ("results", execution.results)):
        row[name] = document and document.model_dump(mode="json")
    return row


def execution_of(row: Any) -> Execution:
    """Return the record in a row, which begins with `EXECUTION_COLUMNS`."""
    # Rows were validated when they were written, but `model_construct` would leave enums as text.
    return Execution.model_validate(dict(zip(_FIELDS, row, strict=False)))


def read_execution(
    connection: sa.Connection, execution_id: str, workflow: str | None = None
) -> Execution:
    """Return one execution.

    Raises
    ------
    ExecutionNotFound
        If it does not exist, or belongs to another workflow than `workflow`.
    """
    row = connection.execute(_SELECT_ONE, {"id": execution_id}).first()
    if row is None or (workflow is not None and row.workflow != workflow):
        raise ExecutionNotFound(execution_id)
    return execution_of(row)


def list_executions(connection: sa.Connection, query: sa.Select[Any]) -> list[Execution]:
    """Return the executions that a query of `EXECUTION_COLUMNS` selects."""
    return [execution_of(row) for row in connection.execute(query)]


def update_execution(connection: sa.Connection, execution: Execution, **values: Any) -> Execution:
    """Set columns of an execution, raise its revision, and return the new record.

    ``results`` is a manifest, of which the row has a summary only, or None.

    Raises
    ------
    IllegalTransition
        If the execution's status cannot become the new one.
    """
    if "status" in values:
        check_transition(execution.status, values["status"])
    if "results" in values:
        values["results"] = _replace_manifest(connection, execution, values["results"])
    values["revision"] = execution.revision + 1
    connection.execute(
        sa.update(executions)
        .where(executions.c.execution_id == execution.execution_id)
        .values(**values)
    )
    return Execution.model_validate({**execution.model_dump(), **values})


def _replace_manifest(
    connection: sa.Connection, execution: Execution, manifest: Manifest | None
) -> dict[str, Any] | None:
    """Store the manifest of an execution in place of an earlier one, and return its summary."""
    own = manifests.c.execution_id == execution.execution_id
    connection.execute(sa.delete(manifests).where(own))
    if manifest is None:
        return None
    document = manifest.model_dump(mode="json")
    connection.execute(
        sa.insert(manifests).values(execution_id=execution.execution_id, manifest=document)
    )
    return summarize(document).model_dump()


def delete_executions(connection: sa.Connection, execution_ids: Sequence[str]) -> None:
    """Delete rows, but keep their ids, by which files that are found later are recognized."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    now = datetime.now(UTC)
    connection.execute(
        insert(deleted_executions).on_conflict_do_nothing(),
        [{"execution_id": each, "deleted_at": now} for each in execution_ids],
    )
    for table in (executions, manifests):
        connection.execute(sa.delete(table).where(table.c.execution_id.in_(execution_ids)))
