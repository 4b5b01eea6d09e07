"""Reads, updates and deletes rows of executions within a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from deployments.store.schema import deleted_executions, executions, manifests
from workflows.errors import ExecutionNotFound
from workflows.execution import Execution, Status, check_transition
from workflows.manifest import Manifest, summarize

# Until a Conductor of this release has copied it, or while one of an earlier release leads, a
# manifest is in the row. Otherwise that column is not read: it may have megabytes.
_RESULTS = sa.case(
    (executions.c.results.is_(sa.null()), executions.c.former_results), else_=executions.c.results
).label("results")
EXECUTION_COLUMNS = [
    _RESULTS if column is executions.c.results else column
    for column in executions.c
    if column.key
    not in {
        *("number", "idempotency_key", "body_digest", "former_results"),
        *("disk_bytes", "unwritten_bytes", "removed_at"),
    }
]
_FIELDS = [column.key for column in EXECUTION_COLUMNS]
_SELECT_ONE = sa.select(*EXECUTION_COLUMNS).where(executions.c.execution_id == sa.bindparam("id"))
_SELECT_MANIFEST = (
    sa.select(
        sa.case(
            (executions.c.results.is_(sa.null()), executions.c.former_results),
            else_=manifests.c.manifest,
        ).label("manifest")
    )
    .select_from(
        executions.outerjoin(manifests, manifests.c.execution_id == executions.c.execution_id)
    )
    .where(executions.c.execution_id == sa.bindparam("id"))
)


def row_of(execution: Execution) -> dict[str, Any]:
    """Return the columns of a record."""
    row = execution.model_dump()
    for name, document in (("progress", execution.progress), ("results", execution.results)):
        row[name] = document and document.model_dump(mode="json")
    return row


def execution_of(row: Any) -> Execution:
    """Return the record in a row, which begins with `EXECUTION_COLUMNS`."""
    values = dict(zip(_FIELDS, row, strict=False))
    results = values["results"]
    if results and isinstance(results["output_files"], list):
        values["results"] = summarize(results)
    # Rows were validated when they were written, but `model_construct` would leave enums as text.
    return Execution.model_validate(values)


def read_manifest(connection: sa.Connection, execution_id: str) -> Manifest | None:
    """Return the manifest of an execution's results; None if it has none."""
    row = connection.execute(_SELECT_MANIFEST, {"id": execution_id}).first()
    return Manifest.model_validate(row.manifest) if row and row.manifest else None


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
    former = {"former_results": sa.null()} if "results" in values else {}
    connection.execute(
        sa.update(executions)
        .where(executions.c.execution_id == execution.execution_id)
        .values(**values, **former)
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


def with_former_manifests(connection: sa.Connection) -> list[str]:
    """Return the executions whose manifest only an earlier release has written, into their row."""
    former = executions.c.former_results
    # The first two need no value of the column, and manifests that are copied are not read again.
    query = sa.select(executions.c.execution_id).where(
        executions.c.results.is_(sa.null()),
        former.is_not(sa.null()),
        executions.c.status.notin_([str(Status.EXPIRED), str(Status.CANCELLED)]),
        sa.cast(former, sa.Text) != "null",
    )
    return list(connection.scalars(query))


def copy_former_manifests(connection: sa.Connection, execution_ids: Sequence[str]) -> None:
    """Copy manifests out of the rows in which an earlier release has written them.

    They stay there, too, for a rollback to that release.
    """
    for execution_id in execution_ids:
        own = executions.c.execution_id == execution_id
        is_former = sa.and_(own, executions.c.results.is_(sa.null()))
        document = connection.scalar(sa.select(executions.c.former_results).where(is_former))
        if document is None:
            continue  # removed or retried meanwhile
        copied = sa.select(executions.c.execution_id, executions.c.former_results).where(own)
        connection.execute(sa.insert(manifests).from_select(["execution_id", "manifest"], copied))
        summary = summarize(document).model_dump()
        connection.execute(sa.update(executions).where(own).values(results=summary))


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
