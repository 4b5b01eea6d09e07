"""What an execution has made: the manifest and the files."""

from __future__ import annotations

import logging
from functools import partial

from fastapi import APIRouter, Request, Response

from deployments.runtime.metrics import DOWNLOADED_BYTES
from serve_app.files.serving import ResultFile
from serve_app.http import schemas
from serve_app.http.context import Context, context_of
from serve_app.http.errors import json_response
from serve_app.http.routes import documented, get
from workflows.delivery import Container
from workflows.errors import ResultsNotFound
from workflows.execution import FINISHED, Execution, Status

logger = logging.getLogger("ray.serve")

router = APIRouter(prefix="/v1/infer", tags=["results"])


@get(
    router,
    "/{workflow}/{execution_id}/results",
    responses=documented(dict[str, object], 404, 503)
    | {202: {"model": schemas.ErrorBody, "description": "Not finished yet"}},
)
async def results(request: Request, workflow: str, execution_id: str) -> Response:
    """Give the manifest: which files there are and how they came about."""
    context = context_of(request)
    execution = await context.execution(workflow, execution_id)
    if execution.status not in FINISHED:
        pending = {
            "message": f"the execution is {execution.status}; ask again later",
            "status": execution.status,
            "timestamp": schemas.now(),
        }
        return json_response({"detail": pending}, 202)
    _check_available(execution, packaged=execution.results is not None)
    return json_response(schemas.results_body(execution) | await _link(context, execution))


@get(
    router,
    "/{workflow}/{execution_id}/results/{path:path}",
    responses=documented(None, 400, 403, 404, 412, 416, 503)
    | {
        200: {"content": {"application/octet-stream": {}}, "description": "The file"},
        206: {"content": {"application/octet-stream": {}}, "description": "Ranges of the file"},
        304: {"description": "Not modified"},
    },
)
async def result_file(request: Request, workflow: str, execution_id: str, path: str) -> Response:
    """Give a result file, whole or in ranges; paths are those of the manifest."""
    context = context_of(request)
    # Not read anew: a reader of Zarr asks for thousands of files, and the record is as large as
    # the manifest.
    seen = await context.observe(workflow, execution_id)
    _check_available(seen.execution, packaged=seen.packaged)
    # In the manifest paths begin with the execution's id, as Earth2Studio's clients expect.
    relative = path.removeprefix(f"{execution_id}/")
    folder = context.results(workflow, execution_id)
    sent = partial(context.metrics.add, DOWNLOADED_BYTES, workflow=workflow)
    return await ResultFile.open(folder, relative, request, sent)


async def _link(context: Context, execution: Execution) -> dict[str, str]:
    """Give a link to the execution's blobs, made for this answer and kept nowhere."""
    lifetime_s, container = context.options.signed_url_s, _container_of(context, execution)
    if context.sign is None or lifetime_s is None or container is None:
        return {}
    try:
        url = await context.sign(container, execution.workflow, execution.execution_id, lifetime_s)
    except Exception as error:
        # The files can be had from here, and the rest of the answer is right.
        logger.warning("no link to the blobs of %s: %r", execution.execution_id, error)
        return {}
    return {"signed_url": url}


def _container_of(context: Context, execution: Execution) -> Container | None:
    """Give the container that holds the execution's results; None if they lie here alone."""
    if context.options.blob_results is not None:
        return context.options.blob_results.container
    if execution.results is None or execution.results.uploaded is None:
        return None
    return Container.model_validate(execution.plan["delivery"]["container"])


def _check_available(execution: Execution, *, packaged: bool) -> None:
    """Refuse what was never packaged, or is gone.

    They can be had while they are delivered, and stay if that fails.
    """
    if packaged and execution.status not in (Status.CANCELLED, Status.EXPIRED):
        return
    if execution.status == Status.EXPIRED:
        raise ResultsNotFound(
            "no results any more: they have expired, which this server lets them do some time "
            "after the execution's end"
        )
    reason = f": {execution.error_message}" if execution.error_message else ""
    raise ResultsNotFound(f"no results, the execution is {execution.status}{reason}")
