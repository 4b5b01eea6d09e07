"""Answers of the Packager about what is stored."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from workflows.execution import EXECUTION_ID


class CompletedMembers(BaseModel):
    """Members that an earlier attempt at an execution has completed."""

    model_config = ConfigDict(frozen=True)

    members: tuple[int, ...] = ()
    """Members with all time steps written."""
    conditioning: tuple[int, ...] = ()
    """Members of the conditioning forecast with all fields written."""


class StoredExecution(BaseModel):
    """What is stored of one execution."""

    model_config = ConfigDict(frozen=True)

    execution_id: str
    workflows: tuple[str, ...]
    """Workflows in whose folders it has results. An execution belongs to one workflow."""
    is_working: bool
    """Whether it has working records or incomplete files."""


def page_of_stored_executions(
    working: Iterable[str], results: Iterable[tuple[str, str]], after: str, limit: int
) -> list[StoredExecution]:
    """Combine folder names into one page of `Storage.stored_executions`.

    Parameters
    ----------
    working : iterable of str
        Names of folders with working records. Names that are no execution's id are left out.
    results : iterable of (str, str)
        Workflows, and names of folders below them.
    """
    with_work = set(working)
    workflows: dict[str, list[str]] = {}
    for workflow, name in results:
        workflows.setdefault(name, []).append(workflow)
    ids = (name for name in with_work | workflows.keys() if name > after)
    return [
        StoredExecution(
            execution_id=execution_id,
            workflows=tuple(workflows.get(execution_id, ())),
            is_working=execution_id in with_work,
        )
        for execution_id in heapq.nsmallest(limit, filter(EXECUTION_ID.fullmatch, ids))
    ]
