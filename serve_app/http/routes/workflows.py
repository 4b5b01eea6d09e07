"""The workflows, and requests to run them."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from deployments.runtime.log_context import bind_execution
from deployments.store.executions import Submitted
from serve_app.http import admission, schemas
from serve_app.http.admission import Admitted
from serve_app.http.context import Context, context_of
from serve_app.http.errors import NoWorkflowExposed, SeveralWorkflowsExposed
from serve_app.http.json_body import parse_idempotency_key, parse_submit
from serve_app.http.responses import json_response
from serve_app.http.routes import documented, get
from workflows.custom import CustomWorkflow
from workflows.errors import WorkflowUnavailable

logger = logging.getLogger("ray.serve")

router = APIRouter(prefix="/v1/infer", tags=["workflows"])

_SUBMITTED = documented(schemas.SubmitBody, 403, 404, 413, 415, 422, 429, 503)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": schemas.SubmitRequest.model_json_schema()}},
    }
}
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="1 to 255 printable ASCII characters. For 24 hours, the same key with the same "
        "body returns the same execution, however often it is sent."
    ),
]


@get(router, "/workflows", responses=documented(schemas.WorkflowsBody))
async def list_workflows(request: Request) -> Response:
    """List the exposed workflows with their descriptions."""
    context = context_of(request)
    listed = {}
    for name in context.options.exposed:
        try:
            listed[name] = (await context.workflow(name)).description
        except WorkflowUnavailable:
            listed[name] = context.described.describe(name)
    return json_response({"workflows": listed})


@get(router, "/workflows/{workflow}/schema", responses=documented(dict[str, Any], 404, 503))
async def workflow_schema(request: Request, workflow: str) -> Response:
    """Return the JSON schema of a workflow's parameters."""
    return json_response((await context_of(request).workflow(workflow)).schema)


@router.post("", responses=_SUBMITTED | documented(schemas.SubmitBody, 409), openapi_extra=_BODY)
async def submit_to_only(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Submit a request to the only exposed workflow."""
    context = context_of(request)
    exposed = context.options.exposed
    if not exposed:
        raise NoWorkflowExposed("no workflow is exposed")
    if len(exposed) > 1:
        raise SeveralWorkflowsExposed(
            f"several workflows are exposed; name one of {', '.join(exposed)}"
        )
    return await _submit(context, exposed[0], request)


@router.post("/{workflow}", responses=_SUBMITTED, openapi_extra=_BODY)
async def submit(
    request: Request, workflow: str, idempotency_key: IdempotencyKey = None
) -> Response:
    """Submit a request to a workflow; it is queued as an execution."""
    return await _submit(context_of(request), workflow, request)


async def _submit(context: Context, name: str, request: Request) -> Response:
    workflow = await context.workflow(name)
    key = parse_idempotency_key(request.headers.getlist("idempotency-key"))
    raw = await request.body()

    def check() -> Admitted | Submitted:
        body = parse_submit(
            raw, request.headers.get("content-type"), request.headers.get("content-encoding")
        )
        return admission.check(context, workflow, body, key)

    submitted = await asyncio.to_thread(check)
    if isinstance(submitted, Admitted):
        if isinstance(workflow, CustomWorkflow):
            await context.custom.check(workflow, submitted.given)
        submitted = await context.write(admission.submit, context, workflow, submitted)
    execution = submitted.execution
    if not submitted.replayed:
        # Executions ahead were nudged for, and the Conductor claims until the queue is empty.
        if not submitted.position:
            context.nudge()
        bind_execution(execution.execution_id, name)
        logger.info("queued %s of %s", execution.execution_id, name)
    return json_response(
        {
            "workflow_name": name,
            "execution_id": execution.execution_id,
            "status": execution.status,
            "position": submitted.position,
            "message": f"Workflow '{name}' queued for execution",
            "timestamp": schemas.now(),
        },
        headers={"Idempotency-Replayed": "true"} if submitted.replayed else None,
    )
