"""Results of executions: the manifest and the files."""

from __future__ import annotations

import logging
from functools import partial

from fastapi import APIRouter, Request, Response

from deployments.runtime.metrics import DOWNLOADED_BYTES
from serve_app.files.serving import ResultFile
from serve_app.http import schemas
from serve_app.http.context import Context, context_of
from serve_app.http.responses import json_response
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
    """Return the manifest: the result files and their provenance."""
    context = context_of(request)
    execution = await context.execution(workflow, execution_id)
    if execution.status not in FINISHED:
        pending = {
            "message": f"the execution is {execution.status}; try again later",
            "status": execution.status,
            "timestamp": schemas.now(),
        }
        return json_response({"detail": pending}, 202)
    _check_available(execution, has_results=execution.results is not None)
    return json_response(schemas.results_body(execution) | await _signed_url(context, execution))


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
    """Return a result file, whole or in ranges, by its path in the manifest."""
    context = context_of(request)
    # From the cache: a Zarr reader asks for thousands of files, and the record holds the manifest.
    snapshot = await context.status(workflow, execution_id)
    _check_available(snapshot.execution, has_results=snapshot.has_results)
    # Paths in the manifest start with the execution id, as Earth2Studio's clients expect.
    relative = path.removeprefix(f"{execution_id}/")
    folder = context.results(workflow, execution_id)
    count = partial(context.metrics.add, DOWNLOADED_BYTES, workflow=workflow)
    return await ResultFile.open(folder, relative, request, count)


async def _signed_url(context: Context, execution: Execution) -> dict[str, str]:
    """Return a signed link to the execution's blobs, as a part of the body; empty without one."""
    lifetime_s, container = context.options.signed_url_s, _container_of(context, execution)
    if context.sign is None or lifetime_s is None or container is None:
        return {}
    try:
        url = await context.sign(container, execution.workflow, execution.execution_id, lifetime_s)
    except Exception as error:
        # The rest of the response is still correct, and this server serves the files, too.
        logger.warning("cannot sign a link to the blobs of %s: %r", execution.execution_id, error)
        return {}
    return {"signed_url": url}


def _container_of(context: Context, execution: Execution) -> Container | None:
    """Return the container that holds the execution's results; None if only this server does."""
    storage = context.options.storage
    if storage.blob is not None:
        return storage.blob.container
    if execution.results is None or execution.results.uploaded is None:
        return None
    return Container.model_validate(execution.plan["delivery"]["container"])


def _check_available(execution: Execution, *, has_results: bool) -> None:
    """Raise ResultsNotFound if an execution has no results, or has them no longer.

    Results are available during their delivery, and also if it fails.
    """
    if has_results and execution.status not in (Status.CANCELLED, Status.EXPIRED):
        return
    if execution.status == Status.EXPIRED:
        raise ResultsNotFound(
            "the results have expired: this server removes them some time after an execution's end"
        )
    reason = f": {execution.error_message}" if execution.error_message else ""
    raise ResultsNotFound(f"no results, the execution is {execution.status}{reason}")
