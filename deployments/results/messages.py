"""Answers of the Packager about stored executions."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from pydantic import BaseModel, ConfigDict

from workflows.execution import EXECUTION_ID


class CompletedMembers(BaseModel):
    """Members that an earlier attempt has completed."""

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
    """Workflows in whose folders it has results; normally one at most."""
    is_working: bool
    """Whether it has working records or incomplete files."""


def page_of_stored_executions(
    working: Iterable[str], folders: Callable[[str], Iterable[str]], after: str, limit: int
) -> list[StoredExecution]:
    """Combine folder names into one page of `Storage.stored_executions`.

    Parameters
    ----------
    working : iterable of str
        Names of folders with working records. Names that are no execution's id are left out.
    folders : callable
        Returns the names of the folders in one of the results' folders; "" is their root.
    """
    with_work = set(working)
    workflows: dict[str, list[str]] = {}
    for workflow in folders(""):
        for name in () if workflow.startswith(".") else folders(workflow):
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
