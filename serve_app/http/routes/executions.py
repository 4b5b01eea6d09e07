"""The life of an execution as its client sees it: listed, followed, ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator

from deployments.runtime.metrics import ENDED
from deployments.store.executions import ExecutionStore
from serve_app.http import schemas
from serve_app.http.admission import accept_again
from serve_app.http.context import context_of
from serve_app.http.errors import json_response
from serve_app.http.long_poll import while_connected
from serve_app.http.routes import documented, get
from workflows.execution import FINISHED, Execution, Status

router = APIRouter(prefix="/v1/infer", tags=["executions"])

LONGEST_WAIT_S = 60
CANCEL_WAIT_S = 2.0
PURGE_WAIT_S = 5.0
LONGEST_PAGE = 200


def _zoned(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


Moment = Annotated[datetime | None, AfterValidator(lambda value: value and _zoned(value))]
Wait = Annotated[
    float,
    Query(
        ge=0,
        le=LONGEST_WAIT_S,
        allow_inf_nan=False,
        description="Seconds to wait for a change before answering.",
    ),
]
KnownRevision = Annotated[
    int | None,
    Query(
        ge=0,
        lt=2**63,
        description="The revision that the client has seen: with `wait`, an execution that has "
        "changed since is answered at once, so that no change falls between two calls.",
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
    """Tell how far an execution is, at once or when it has changed."""
    context = context_of(request)
    seen = await context.observe(workflow, execution_id)
    if wait and seen.execution.status not in FINISHED and revision in (None, seen.revision):
        await while_connected(request, context.changes.wait(seen.execution, seen.position, wait))
        seen = await context.observe(workflow, execution_id)
    return Response(seen.body, media_type="application/json")


@get(router, "/{workflow}", responses=documented(schemas.ListBody, 404, 422, 503))
async def list_executions(
    request: Request,
    workflow: str,
    status: Annotated[Sequence[Status], Query(description="Any of these.")] = (),
    created_after: Annotated[Moment, Query(description="At or after; UTC without a zone.")] = None,
    created_before: Annotated[Moment, Query(description="Before; UTC without a zone.")] = None,
    limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = 50,
    before: Annotated[
        str | None,
        Query(pattern="^[A-Za-z0-9_-]{1,64}$", description="`next` of the page before."),
    ] = None,
) -> Response:
    """List the executions of a workflow, newest first."""
    context = context_of(request)
    context.check_workflow(workflow)
    found = await context.read(
        context.store.list_executions,
        workflow,
        statuses=status,
        created_after=created_after,
        created_before=created_before,
        limit=limit + 1,
        before=before,
    )
    page = found[:limit]
    positions = await context.read(_positions, context.store, page)
    return json_response(
        {
            "executions": [
                schemas.status_body(execution, position)
                for execution, position in zip(page, positions, strict=True)
            ],
            "next": page[-1].execution_id if len(found) > limit else None,
        }
    )


@router.delete(
    "/{workflow}/{execution_id}",
    responses=documented(schemas.StatusBody, 404, 409, 422, 503)
    | {
        202: {"model": schemas.StatusBody, "description": "Asked for; not done yet"},
        204: {"description": "Removed, with its results"},
    },
)
async def delete(
    request: Request,
    workflow: str,
    execution_id: str,
    purge: Annotated[
        bool, Query(description="Remove a finished execution with its results.")
    ] = False,
) -> Response:
    """Cancel an execution that has not finished; with `purge`, remove one that has."""
    context = context_of(request)
    context.check(workflow, execution_id)
    store, changes = context.store, context.changes
    if purge:
        doomed = await context.write(store.request_purge, workflow, execution_id)
        context.nudge()
        if await changes.wait_gone(doomed, PURGE_WAIT_S):
            return Response(status_code=204)
        return json_response(schemas.status_body(doomed, None), 202)
    asked = await context.write(store.request_cancel, workflow, execution_id)
    if asked.status in FINISHED:
        # It waited still: the Conductor, which counts the others, never had it.
        context.metrics.add(ENDED, workflow=workflow, status=asked.status)
    context.nudge()
    ended = await changes.wait_finished(
        asked, lambda: context.read(store.get, workflow, execution_id), CANCEL_WAIT_S
    )
    code = 200 if ended.status in FINISHED else 202
    return json_response(schemas.status_body(ended, None), code)


@router.post(
    "/{workflow}/{execution_id}/retry",
    status_code=202,
    responses=documented(None, 404, 409, 429, 503)
    | {202: {"model": schemas.StatusBody, "description": "Queued again"}},
)
async def retry(request: Request, workflow: str, execution_id: str) -> Response:
    """Let a failed execution go on: at its delivery, or with the members that are not whole."""
    context = context_of(request)
    context.check(workflow, execution_id)
    queued = await context.write(accept_again, context, workflow, execution_id)
    context.nudge()
    position = await context.read(context.store.position, queued)
    return json_response(schemas.status_body(queued, position), 202)


def _positions(store: ExecutionStore, executions: Sequence[Execution]) -> list[int | None]:
    return [store.position(execution) for execution in executions]
