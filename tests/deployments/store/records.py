"""Executions to fill a store with, and what tests of the store share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from deployments.store.conductor_view import ConductorStore
from deployments.store.schema import executions
from workflows.execution import Execution, Status, new_execution_id
from workflows.manifest import Manifest, OutputFile, Totals

WORKFLOW = "foundry_fcn3_workflow"
NOW = datetime.now(UTC)
MANIFEST = Manifest(output_files=(OutputFile(path="x/größe.nc", size=30, sha256="0"),))

on_both_databases = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
on_both_databases_slowly = pytest.mark.parametrize(
    "store_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
"""For tests that start processes: PostgreSQL is left out of `make test`."""


def new(workflow: str = WORKFLOW, **values: object) -> Execution:
    standard = {
        "execution_id": new_execution_id(),
        "workflow": workflow,
        "status": Status.QUEUED,
        "parameters": {"n_steps": 2},
        "plan": {},
        "created_at": datetime.now(UTC),
    }
    return Execution.model_validate(standard | values)


def submit(store: ConductorStore, *executions: Execution) -> list[Execution]:
    return [store.submit(execution, max_queued=1000).execution for execution in executions]


def fail(store: ConductorStore, fence: int, execution_id: str, **values: Any) -> None:
    store.claim_next(fence)
    store.update(fence, execution_id, status=Status.FAILED, error_message="no token", **values)


def finish(store: ConductorStore, fence: int, execution: Execution) -> None:
    store.update(fence, execution.execution_id, status=Status.PENDING_RESULTS)
    store.update(fence, execution.execution_id, status=Status.COMPLETED)


def results(size: int) -> Manifest:
    """Return a manifest of files of so many bytes."""
    totals = Totals(files=0, bytes=size, listed=0, truncated=False)
    return Manifest(output_files=(), totals=totals)


def usage(store: ConductorStore) -> tuple[int, int]:
    """Return the bytes that all executions take, and those still to be written."""
    query = sa.select(
        sa.func.sum(executions.c.disk_bytes), sa.func.sum(executions.c.unwritten_bytes)
    )
    with store.engine.connect() as connection:
        row = connection.execute(query).one()
        return int(row[0] or 0), int(row[1] or 0)
