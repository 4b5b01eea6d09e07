"""Every refusal of a request, before anything is queued."""

from __future__ import annotations

import math
import shutil
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from deployments.store.disk_usage import Demand
from deployments.store.executions import ExecutionStore, Idempotency, Submitted
from serve_app.http.context import Context, IngressOptions
from serve_app.http.errors import NO_DISK, NoRoomNow, TryLater
from serve_app.http.json_body import RequestBody
from workflows.base import Plan, Workflow
from workflows.custom import is_custom
from workflows.errors import InvalidParameters, Problem, QueueFull, StorageFull
from workflows.execution import Execution, Status, new_execution_id

UNKNOWN_RETRY_S = 30
"""Retry-After while no execution has ended yet."""
LONGEST_RETRY_S = 600
REDUCIBLE = (
    *("n_steps", "n_samples", "seeds"),
    *("n_samples_stormscope", "seeds_stormscope", "variables"),
)
"""Parameters that decide how large a result is."""


def accept(
    context: Context, workflow: Workflow, body: RequestBody, idempotency_key: str | None
) -> Submitted:
    """Check a request and queue it; blocks on disk and store.

    Raises
    ------
    InvalidParameters
        If it can never run, or its result is too large; DeliveryForbidden if it asks for a
        delivery to a place that is not allowed.
    TryLater
        If the queue is full.
    NoRoomNow
        If its result does not fit beside those that are there or will be written.
    IdempotencyConflict
        If the key came with another body.
    """
    store, options = context.store, context.options
    idempotency = Idempotency(idempotency_key, body.digest) if idempotency_key else None
    # Looked for first: a repeated request is answered even if a new one could not be taken.
    if idempotency is not None and (known := store.replay(workflow.name, idempotency)):
        return known
    parameters = workflow.validate(body.parameters)
    plan = workflow.plan(parameters)
    delivery = options.delivery.resolve(
        workflow.name,
        parameters.model_dump(mode="json", exclude_unset=True),
        can_be_registered=isinstance(plan, Plan),
    )
    drawn: dict[str, Any] = {}
    if isinstance(plan, Plan):
        _check_size(plan, workflow, options.max_output_bytes)
        drawn = workflow.drawn(plan)
    execution = Execution(
        execution_id=new_execution_id(),
        workflow=workflow.name,
        status=Status.QUEUED,
        parameters=parameters.model_dump(mode="json") | drawn,
        plan=plan.model_copy(update={"delivery": delivery}).model_dump(mode="json"),
        created_at=datetime.now(UTC),
    )
    try:
        return store.submit(
            execution,
            max_queued=options.max_queued,
            idempotency=idempotency,
            demand=_demand(options, plan),
        )
    except QueueFull as full:
        raise TryLater(full.queued, full.max_size, _usual_seconds(store, workflow.name)) from None
    except StorageFull as full:
        if not full.is_permanent:
            raise _no_room(full, store, workflow.name) from None
        if isinstance(plan, Plan):
            raise _too_large(plan, workflow, _in_words(full), NO_DISK) from None
        raise InvalidParameters(
            [Problem("parameters", "no disk is left for results", NO_DISK)]
        ) from None


def accept_again(context: Context, workflow: str, execution_id: str) -> Execution:
    """Queue an execution that has failed; blocks on the store.

    Raises
    ------
    ExecutionNotFound
    IllegalTransition
        If it has not failed.
    TryLater
        If the queue is full.
    NoRoomNow
        If its result does not fit beside the others.
    """
    store, options = context.store, context.options
    failed = store.get(workflow, execution_id)
    plan = None if is_custom(failed.plan) else Plan.model_validate(failed.plan)
    try:
        return store.request_retry(
            workflow,
            execution_id,
            max_queued=options.max_queued,
            demand=_demand(options, plan),
        )
    except QueueFull as full:
        raise TryLater(full.queued, full.max_size, _usual_seconds(store, workflow)) from None
    except StorageFull as full:
        raise _no_room(full, store, workflow) from None


def _usual_seconds(store: ExecutionStore, workflow: str) -> int:
    """Estimate when a place is free: the usual length of an execution."""
    recent = store.list_executions(workflow, statuses=[Status.COMPLETED], limit=5)
    lengths = [
        (execution.ended_at - execution.started_at).total_seconds()
        for execution in recent
        if execution.started_at and execution.ended_at
    ]
    if not lengths:
        return UNKNOWN_RETRY_S
    return min(max(math.ceil(statistics.median(lengths)), 1), LONGEST_RETRY_S)


def readable_size(size: float) -> str:
    """Give a number of bytes in words, decimal units."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"


def _check_size(plan: Plan, workflow: Workflow, limit: int) -> None:
    if plan.output_bytes > limit:
        raise _too_large(
            plan,
            workflow,
            f"this server accepts {readable_size(limit)}",
            "output_too_large",
        )


def _demand(options: IngressOptions, plan: BaseModel | None) -> Demand:
    # How much a user's class will write only the class knows; that is checked when it says so.
    return Demand(
        needed=plan.disk_bytes if isinstance(plan, Plan) else 0,
        free=free_bytes(options.results_dir, options.min_free_bytes)
        if options.blob_results is None
        else None,
        quota=options.quota_bytes,
    )


def _no_room(full: StorageFull, store: ExecutionStore, workflow: str) -> NoRoomNow:
    return NoRoomNow(
        full.needed, full.available, full.capacity, _in_words(full), _usual_seconds(store, workflow)
    )


def _in_words(full: StorageFull) -> str:
    needs = f"it needs {readable_size(full.needed)} of disk, " if full.needed else ""
    if full.is_permanent:
        return f"{needs}there are {readable_size(full.capacity)} if no other result is kept"
    return (
        f"no room for the result now: {needs}{readable_size(full.available)} are left beside other "
        "results and what will still be written; results that are purged or expire make room"
    )


def free_bytes(folder: Path, reserve: int) -> int:
    """Give what results may still take of a folder's disk; the folder need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return max(shutil.disk_usage(folder).free - reserve, 0)


def _too_large(plan: Plan, workflow: Workflow, reason: str, kind: str) -> InvalidParameters:
    sizes = (
        f"{len(plan.seeds)} members x {plan.n_times} times x {len(plan.variables)} variables x "
        f"{readable_size(plan.field_bytes)} = {readable_size(plan.output_bytes)}"
    )
    reducible = [name for name in REDUCIBLE if name in workflow.parameters.model_fields]
    return InvalidParameters(
        [
            Problem("parameters", f"{sizes}: {reason}; reduce {', '.join(reducible)}", kind),
        ]
    )
