"""Status of executions, and requests to cancel, retry or remove them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator

from deployments.runtime.metrics import ENDED
from serve_app.http import admission, schemas
from serve_app.http.context import context_of
from serve_app.http.long_poll import while_connected
from serve_app.http.responses import json_response
from serve_app.http.routes import documented, get
from workflows.execution import FINISHED, Status

router = APIRouter(prefix="/v1/infer", tags=["executions"])

MAX_WAIT_S = 60
CANCEL_WAIT_S = 2.0
PURGE_WAIT_S = 5.0
MAX_PAGE = 200


def _with_zone(value: datetime | None) -> datetime | None:
    return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


Time = Annotated[datetime | None, AfterValidator(_with_zone)]
Wait = Annotated[
    float,
    Query(
        ge=0,
        le=MAX_WAIT_S,
        allow_inf_nan=False,
        description="Seconds to wait for a change before answering.",
    ),
]
KnownRevision = Annotated[
    int | None,
    Query(
        ge=0,
        lt=2**63,
        description="Last revision that the client has seen. With `wait`, a newer revision is "
        "returned at once, so that no change between two calls is missed.",
    ),
]


@get(
    router,
    "/{workflow}/{execution_id}/status",
    responses=documented(schemas.StatusBody, 404, 422, 503),
)
async def status(
    request: Request,
    workflow: str,
    execution_id: str,
    wait: Wait = 0.0,
    revision: KnownRevision = None,
) -> Response:
    """Return the status of an execution, at once or after its next change."""
    context = context_of(request)
    snapshot = await context.status(workflow, execution_id)
    unchanged = revision in (None, snapshot.execution.revision)
    if wait and unchanged and snapshot.execution.status not in FINISHED:
        change = context.changes.wait(snapshot.execution, snapshot.position, wait)
        await while_connected(request, change)
        snapshot = await context.status(workflow, execution_id)
    return Response(snapshot.body, media_type="application/json")


@get(router, "/{workflow}", responses=documented(schemas.ListBody, 404, 422, 503))
async def list_executions(
    request: Request,
    workflow: str,
    status: Annotated[Sequence[Status], Query(description="Any of these statuses.")] = (),
    created_after: Annotated[Time, Query(description="At or after; UTC if it has no zone.")] = None,
    created_before: Annotated[Time, Query(description="Before; UTC if it has no zone.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    before: Annotated[
        str | None,
        Query(pattern="^[A-Za-z0-9_-]{1,64}$", description="`next` of the previous page."),
    ] = None,
) -> Response:
    """List the executions of a workflow, newest first."""
    context = context_of(request)
    context.check_workflow(workflow)
    executions = await context.read(
        context.store.list_executions,
        workflow,
        statuses=status,
        created_after=created_after,
        created_before=created_before,
        limit=limit + 1,
        before=before,
    )
    page = executions[:limit]
    positions = await context.read(lambda: [context.store.position(each) for each in page])
    return json_response(
        {
            "executions": list(map(schemas.status_body, page, positions)),
            "next": page[-1].execution_id if len(executions) > limit else None,
        }
    )


@router.delete(
    "/{workflow}/{execution_id}",
    responses=documented(schemas.StatusBody, 404, 409, 422, 503)
    | {
        202: {"model": schemas.StatusBody, "description": "Requested; not done yet"},
        204: {"description": "Removed with its results"},
    },
)
async def delete(
    request: Request,
    workflow: str,
    execution_id: str,
    purge: Annotated[
        bool, Query(description="Remove a finished execution and its results.")
    ] = False,
) -> Response:
    """Cancel an execution; with `purge`, remove a finished one."""
    context = context_of(request)
    context.check(workflow, execution_id)
    store, changes = context.store, context.changes
    if purge:
        purged = await context.write(store.request_purge, workflow, execution_id)
        context.nudge()
        if await changes.wait_removed(purged, PURGE_WAIT_S):
            return Response(status_code=204)
        return json_response(schemas.status_body(purged, None), 202)
    cancelled = await context.write(store.request_cancel, workflow, execution_id)
    if cancelled.status in FINISHED:
        # It was still queued, so the Conductor, which counts the others, never saw it.
        context.metrics.add(ENDED, workflow=workflow, status=cancelled.status)
    context.nudge()
    execution = await changes.wait_finished(
        cancelled, lambda: context.read(store.get, workflow, execution_id), CANCEL_WAIT_S
    )
    code = 200 if execution.status in FINISHED else 202
    return json_response(schemas.status_body(execution, None), code)


@router.post(
    "/{workflow}/{execution_id}/retry",
    status_code=202,
    responses=documented(None, 404, 409, 429, 503)
    | {202: {"model": schemas.StatusBody, "description": "Queued again"}},
)
async def retry(request: Request, workflow: str, execution_id: str) -> Response:
    """Continue a failed execution: its delivery, or the members that are not complete."""
    context = context_of(request)
    context.check(workflow, execution_id)
    queued = await context.write(admission.retry, context, workflow, execution_id)
    context.nudge()
    position = await context.read(context.store.position, queued)
    return json_response(schemas.status_body(queued, position), 202)
