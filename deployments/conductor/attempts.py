"""Attempts at an execution: each is a DBOS workflow with its own records."""

from __future__ import annotations

from collections.abc import Sequence

from dbos import DBOS

from workflows.execution import Execution

ENDED = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
"""States of a DBOS workflow that no longer runs."""


def attempt_id(execution: Execution, attempt: int | None = None) -> str:
    """Return the DBOS workflow id of an attempt at an execution, by default the latest."""
    attempt = execution.retries if attempt is None else attempt
    return f"{execution.execution_id}.{attempt}" if attempt else execution.execution_id


def execution_id_of(attempt: str) -> str:
    """Return the id of the execution to which an attempt belongs."""
    return attempt.partition(".")[0]


async def remove_attempts(execution: Execution) -> None:
    """Remove DBOS's records of all attempts at an execution, if they exist."""
    for attempt in range(execution.retries + 1):
        workflow_id = attempt_id(execution, attempt)
        if await DBOS.get_workflow_status_async(workflow_id) is not None:
            await DBOS.delete_workflow_async(workflow_id)


async def ended_attempts(offset: int, limit: int) -> Sequence[str]:
    """Return the ids of attempts that no longer run, oldest first."""
    workflows = await DBOS.list_workflows_async(
        status=ENDED, offset=offset, limit=limit, load_input=False, load_output=False
    )
    return [workflow.workflow_id for workflow in workflows]
