"""Attempts at an execution: each is a workflow of DBOS's, with records of its own."""

from __future__ import annotations

from collections.abc import Sequence

from dbos import DBOS

from workflows.execution import Execution

OVER = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
"""States of DBOS's in which an attempt does nothing any more."""


def attempt_id(execution: Execution, attempt: int | None = None) -> str:
    """Name the DBOS workflow of an attempt at an execution, by default the latest."""
    attempt = execution.retries if attempt is None else attempt
    return f"{execution.execution_id}.{attempt}" if attempt else execution.execution_id


def execution_of(attempt: str) -> str:
    """Give the execution that an attempt is of."""
    return attempt.partition(".")[0]


async def remove_attempts(execution: Execution) -> None:
    """Remove DBOS's records of all attempts; those that are not there are no matter."""
    for attempt in range(execution.retries + 1):
        workflow_id = attempt_id(execution, attempt)
        if await DBOS.get_workflow_status_async(workflow_id) is not None:
            await DBOS.delete_workflow_async(workflow_id)


async def attempts_over(offset: int, limit: int) -> Sequence[str]:
    """List attempts that do nothing any more, oldest first."""
    found = await DBOS.list_workflows_async(
        status=OVER, offset=offset, limit=limit, load_input=False, load_output=False
    )
    return [each.workflow_id for each in found]
