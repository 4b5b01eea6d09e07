"""Admission of requests: every check before an execution is queued."""

from __future__ import annotations

import math
import shutil
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from deployments.store.disk_usage import Demand
from deployments.store.executions import ExecutionStore, Idempotency, Submitted
from serve_app.http.context import Context
from serve_app.http.errors import DISK_TOO_SMALL, QueueFullForNow, StorageFullForNow
from serve_app.http.json_body import RequestBody
from serve_app.http.options import IngressOptions
from workflows.base import Plan, Workflow
from workflows.custom import is_custom
from workflows.errors import InvalidParameters, Problem, QueueFull, StorageFull
from workflows.execution import Execution, Status, new_execution_id

DEFAULT_RETRY_S = 30
"""Retry-After as long as no execution has completed."""
MAX_RETRY_S = 600
SIZE_PARAMETERS = (
    *("n_steps", "n_samples", "seeds"),
    *("n_samples_stormscope", "seeds_stormscope", "variables"),
)
"""Parameters that determine the size of a result."""


@dataclass(frozen=True)
class Admitted:
    """A checked request, which only queue and disk can still refuse."""

    execution: Execution
    plan: BaseModel
    given: dict[str, Any]
    """The parameters of the request as JSON, without defaults."""
    idempotency: Idempotency | None


def check(
    context: Context, workflow: Workflow, body: RequestBody, idempotency_key: str | None
) -> Admitted | Submitted:
    """Check a request; return an earlier execution if its Idempotency-Key is known.

    A large request takes tenths of a second, so this must run neither on the event loop nor in the
    thread that writes.

    Raises
    ------
    InvalidParameters
        If it can never run, or its result is too large.
    DeliveryForbidden
        If it asks for a delivery to a place that is not allowed.
    IdempotencyConflict
        If the key was used with another body.
    """
    options = context.options
    idempotency = Idempotency(idempotency_key, body.digest) if idempotency_key else None
    # First, so that a repeated request is answered even if a new one would be refused.
    if idempotency is not None and (known := context.store.replay(workflow.name, idempotency)):
        return known
    parameters = workflow.validate(body.parameters)
    given = parameters.model_dump(mode="json", exclude_unset=True)
    plan = workflow.plan(parameters)
    delivery = options.delivery.resolve(
        workflow.name, given, can_be_registered=isinstance(plan, Plan)
    )
    drawn: dict[str, Any] = {}
    if isinstance(plan, Plan):
        if plan.output_bytes > (limit := options.limits.max_output_bytes):
            reason = f"this server accepts {_readable_size(limit)}"
            raise _too_large(plan, workflow, reason, "output_too_large")
        drawn = workflow.drawn_parameters(plan)
    execution = Execution(
        execution_id=new_execution_id(),
        workflow=workflow.name,
        status=Status.QUEUED,
        parameters=parameters.model_dump(mode="json") | drawn,
        plan=plan.model_copy(update={"delivery": delivery}).model_dump(mode="json"),
        created_at=datetime.now(UTC),
    )
    return Admitted(execution, plan, given, idempotency)


def submit(context: Context, workflow: Workflow, admitted: Admitted) -> Submitted:
    """Queue a checked request; blocks on the disk and the store.

    Raises
    ------
    QueueFullForNow
    StorageFullForNow
        If its result does not fit beside what exists or will be written.
    InvalidParameters
        If its result could never fit.
    IdempotencyConflict
        If the key was used with another body.
    """
    store, options, plan = context.store, context.options, admitted.plan
    try:
        return store.submit(
            admitted.execution,
            max_queued=options.queue.max_size,
            idempotency=admitted.idempotency,
            demand=_demand(options, plan),
        )
    except QueueFull as error:
        raise QueueFullForNow(error, _retry_after_s(store, workflow.name)) from None
    except StorageFull as error:
        reason = _describe(error)
        if not error.is_permanent:
            retry_after_s = _retry_after_s(store, workflow.name)
            raise StorageFullForNow(error, reason, retry_after_s) from None
        if isinstance(plan, Plan):
            raise _too_large(plan, workflow, reason, DISK_TOO_SMALL) from None
        raise InvalidParameters(
            [Problem("parameters", "the disk has no space for results", DISK_TOO_SMALL)]
        ) from None


def retry(context: Context, workflow: str, execution_id: str) -> Execution:
    """Queue a failed execution again; blocks on the store.

    Raises
    ------
    ExecutionNotFound
    IllegalTransition
        If it has not failed.
    QueueFullForNow
    StorageFullForNow
        If its result does not fit beside the others.
    """
    store, options = context.store, context.options
    failed = store.get(workflow, execution_id)
    plan = None if is_custom(failed.plan) else Plan.model_validate(failed.plan)
    try:
        return store.request_retry(
            workflow,
            execution_id,
            max_queued=options.queue.max_size,
            demand=_demand(options, plan),
        )
    except QueueFull as error:
        raise QueueFullForNow(error, _retry_after_s(store, workflow)) from None
    except StorageFull as error:
        retry_after_s = _retry_after_s(store, workflow)
        raise StorageFullForNow(error, _describe(error), retry_after_s) from None


def _demand(options: IngressOptions, plan: BaseModel | None) -> Demand:
    # The output size of a custom workflow is unknown until it runs, and is checked then.
    return Demand(
        needed=plan.disk_bytes if isinstance(plan, Plan) else 0,
        free=_free_bytes(options.storage.results_dir, options.results.min_free_bytes)
        if options.storage.blob is None
        else None,
        quota=options.results.quota_bytes,
    )


def _free_bytes(folder: Path, reserve: int) -> int:
    """Return the bytes that results may still occupy on the disk of a folder that may not exist."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return max(shutil.disk_usage(folder).free - reserve, 0)


def _too_large(plan: Plan, workflow: Workflow, reason: str, kind: str) -> InvalidParameters:
    size = (
        f"{len(plan.seeds)} members x {plan.n_times} times x {len(plan.variables)} variables x "
        f"{_readable_size(plan.field_bytes)} = {_readable_size(plan.output_bytes)}"
    )
    reducible = [name for name in SIZE_PARAMETERS if name in workflow.parameters.model_fields]
    message = f"{size}: {reason}; reduce {', '.join(reducible)}"
    return InvalidParameters([Problem("parameters", message, kind)])


def _describe(error: StorageFull) -> str:
    needs = f"it needs {_readable_size(error.needed)} of disk; " if error.needed else ""
    if error.is_permanent:
        return f"{needs}{_readable_size(error.capacity)} are available even without other results"
    return (
        f"no space for the result at the moment: {needs}{_readable_size(error.available)} are left "
        "beside other results and what will still be written; purge results or wait until some "
        "expire"
    )


def _retry_after_s(store: ExecutionStore, workflow: str) -> int:
    """Return the typical duration of an execution, as an estimate of when one will finish."""
    recent = store.list_executions(workflow, statuses=[Status.COMPLETED], limit=5)
    durations = [
        (execution.ended_at - execution.started_at).total_seconds()
        for execution in recent
        if execution.started_at and execution.ended_at
    ]
    if not durations:
        return DEFAULT_RETRY_S
    return min(max(math.ceil(statistics.median(durations)), 1), MAX_RETRY_S)


def _readable_size(size: float) -> str:
    """Return a number of bytes as text, in decimal units."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"
