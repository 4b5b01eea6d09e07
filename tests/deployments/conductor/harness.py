"""Running a Conductor in the test's own process, and waiting for what it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from deployments.conductor.capacity import WorkflowCapacity
from deployments.conductor.cleanup import Withdrawals
from deployments.conductor.context import ExecutionContext
from deployments.conductor.loop import ConductorLoop
from deployments.conductor.member_scheduler import MemberScheduler
from deployments.conductor.metrics import ExecutionMetrics
from deployments.conductor.progress import ProgressTracker
from deployments.conductor.records import ExecutionRecords
from deployments.store.conductor_view import ConductorStore
from tests.deployments.conductor.conductor_process import make_loop
from tests.deployments.conductor.stand_ins import StandIns
from workflows import Execution, FCN3Workflow, Status
from workflows.delivery import Delivery
from workflows.errors import ExecutionNotFound
from workflows.execution import new_execution_id

TIMEOUT_S = 120.0
"""Long enough for a busy machine: it bounds how long a failure takes, and delays no success."""

WORKFLOW = FCN3Workflow()


def submit(store: ConductorStore, delivery: Delivery | None = None, **parameters: Any) -> str:
    """Submit a forecast, by default of three members and three time steps; return its id."""
    validated = WORKFLOW.validate({"n_steps": 2, "n_samples": 3, **parameters})
    plan = WORKFLOW.plan(validated).model_copy(update={"delivery": delivery})
    execution = Execution(
        execution_id=new_execution_id(),
        workflow=WORKFLOW.name,
        status=Status.QUEUED,
        parameters=validated.model_dump(mode="json"),
        plan=plan.model_dump(mode="json"),
        created_at=datetime.now(UTC),
    )
    store.submit(execution, max_queued=100)
    return execution.execution_id


@asynccontextmanager
async def conductor_loop(
    store_url: str, stand_ins: StandIns, **settings: Any
) -> AsyncIterator[ConductorLoop]:
    """Run a Conductor's loop during the block."""
    loop = make_loop(store_url, stand_ins, **settings)
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        await loop.stop()
        await task


def make_context(
    store: ConductorStore, fence: int, packager: Any = None
) -> tuple[ExecutionContext, ProgressTracker]:
    """Return what runs executions in a Conductor, without its loop."""
    metrics = ExecutionMetrics()
    records = ExecutionRecords(store, fence, metrics)
    context = ExecutionContext(
        records,
        packager,
        Withdrawals(None),
        MemberScheduler({}),
        WorkflowCapacity({}, lambda: None),
        metrics,
    )
    return context, ProgressTracker(context.active, records, models_share_gpu=False)


async def until(
    store: ConductorStore,
    execution_id: str,
    condition: Callable[[Execution], bool],
    seconds: float = TIMEOUT_S,
) -> Execution:
    """Wait for a condition on an execution's record, and return the record."""
    deadline = time.monotonic() + seconds
    while True:
        execution = store.read(execution_id)
        if condition(execution):
            return execution
        assert time.monotonic() < deadline, f"still {execution}"
        await asyncio.sleep(0.02)


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], seconds: float = TIMEOUT_S
) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while True:
        holds = condition()
        if await holds if isinstance(holds, Awaitable) else holds:
            return
        assert time.monotonic() < deadline, "the condition never held"
        await asyncio.sleep(0.02)


def exists(store: ConductorStore, execution_id: str) -> bool:
    try:
        store.read(execution_id)
    except ExecutionNotFound:
        return False
    return True


def finished(execution: Execution) -> bool:
    return execution.ended_at is not None


def has_progress(execution: Execution) -> bool:
    return execution.progress is not None
