"""Results of executions: the manifest and the files."""

from __future__ import annotations

import logging
from functools import partial

from fastapi import APIRouter, Request, Response

from deployments.runtime.metrics import DOWNLOADED_BYTES
from serve_app.files.absence import may_be_chunk
from serve_app.files.serving import ResultFile, in_thread
from serve_app.http import schemas
from serve_app.http.context import Context, context_of
from serve_app.http.errors import ResultsGone, ResultsPending
from serve_app.http.responses import json_response
from serve_app.http.routes import documented, get
from serve_app.http.status_cache import StatusSnapshot
from workflows.delivery import Container
from workflows.errors import ExecutionNotFound, ResultsNotFound, WorkflowNotFound
from workflows.execution import FINISHED, Execution, Status
from workflows.manifest import Manifest

logger = logging.getLogger("ray.serve")

router = APIRouter(prefix="/v1/infer", tags=["results"])


@get(
    router,
    "/{workflow}/{execution_id}/results",
    responses=documented(dict[str, object], 404, 410, 503)
    | {202: {"model": schemas.ErrorBody, "description": "Not finished yet"}},
)
async def results(request: Request, workflow: str, execution_id: str) -> Response:
    """Return the manifest: the result files and their provenance."""
    context = context_of(request)
    execution = await _execution(context, workflow, execution_id)
    manifest = None
    if execution.results is not None:
        manifest = await context.read(context.store.manifest, execution_id)
        if manifest is None:
            # The results were removed after the record was read.
            execution = await _execution(context, workflow, execution_id)
    if execution.status not in FINISHED:
        pending = {
            "message": f"the execution is {execution.status}; try again later",
            "status": execution.status,
            "timestamp": schemas.now(),
        }
        return json_response({"detail": pending}, 202)
    _check_available(execution, has_results=manifest is not None)
    body = schemas.results_body(execution, manifest or Manifest(output_files=()))
    return json_response(body | await _signed_url(context, execution))


@get(
    router,
    "/{workflow}/{execution_id}/results/{path:path}",
    responses=documented(None, 400, 403, 404, 409, 410, 412, 416, 503)
    | {
        200: {"content": {"application/octet-stream": {}}, "description": "The file"},
        206: {"content": {"application/octet-stream": {}}, "description": "Ranges of the file"},
        304: {"description": "Not modified"},
    },
)
async def result_file(request: Request, workflow: str, execution_id: str, path: str) -> Response:
    """Return a result file, whole or in ranges, by its path in the manifest."""
    context = context_of(request)
    # Paths in the manifest start with the execution id, as Earth2Studio's clients expect.
    relative = path.removeprefix(f"{execution_id}/")
    try:
        await _available(context, workflow, execution_id)
        folder = context.results(workflow, execution_id)
        count = partial(context.metrics.add, DOWNLOADED_BYTES, workflow=workflow)
        return await ResultFile.open(folder, relative, request, count)
    except (WorkflowNotFound, ExecutionNotFound, ResultsNotFound) as error:
        # A Zarr reader takes 404 for a chunk that was never written, full of the fill value.
        if may_be_chunk(relative):
            await _check_never_written(context, workflow, execution_id, relative, error)
        raise


async def _execution(context: Context, workflow: str, execution_id: str) -> Execution:
    """Return the record of an execution; raise ResultsGone if it was removed not long ago."""
    try:
        return await context.execution(workflow, execution_id)
    except ExecutionNotFound:
        await _check_not_deleted(context, execution_id)
        raise


async def _available(context: Context, workflow: str, execution_id: str) -> StatusSnapshot:
    """Return the status of an execution whose results can be read; raise if it has none."""
    try:
        # From the cache: a Zarr reader asks for thousands of files, and the record holds the
        # manifest.
        snapshot = await context.status(workflow, execution_id)
    except ExecutionNotFound:
        await _check_not_deleted(context, execution_id)
        raise
    if snapshot.execution.status not in FINISHED and not snapshot.has_results:
        raise ResultsPending(snapshot.execution.status)
    _check_available(snapshot.execution, has_results=snapshot.has_results)
    return snapshot


async def _check_not_deleted(context: Context, execution_id: str) -> None:
    """Raise ResultsGone if an execution was removed not long ago."""
    if await context.was_deleted(execution_id):
        raise ResultsGone("the execution was removed, with its results")


async def _check_never_written(
    context: Context, workflow: str, execution_id: str, relative: str, error: Exception
) -> None:
    """Raise unless a result is complete without a chunk that `error` did not find.

    Raises
    ------
    ResultsGone
        If the chunk was lost or removed, or nothing is known of its execution, which may have been
        removed long ago.
    ResultsUnavailable
        If the result cannot be read now.
    """
    if not isinstance(error, ResultsNotFound):
        raise ResultsGone(str(error)) from None
    try:
        # Read again, because whatever removes files changes the record first.
        await _available(context, workflow, execution_id)
    except (ExecutionNotFound, ResultsNotFound) as changed:
        raise ResultsGone(str(changed)) from None
    folder = context.results(workflow, execution_id)
    result = workflow, execution_id
    if not await in_thread(context.listings.contain, result, folder, relative):
        return
    raise ResultsGone(f"{relative!r} is part of the result but was lost")


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
    if execution.results is None or not execution.results.is_uploaded:
        return None
    return Container.model_validate(execution.plan["delivery"]["container"])


def _check_available(execution: Execution, *, has_results: bool) -> None:
    """Raise if an execution has no results, or has them no longer.

    Results are available during their delivery, and also if it fails.

    Raises
    ------
    ResultsNotFound, ResultsGone
    """
    if execution.status == Status.EXPIRED:
        raise ResultsGone(
            "the results have expired: this server removes them some time after an execution's end"
        )
    if execution.purge_requested:
        raise ResultsGone("the execution is being removed, with its results")
    if not has_results or execution.status == Status.CANCELLED:
        reason = f": {execution.error_message}" if execution.error_message else ""
        raise ResultsNotFound(f"no results, the execution is {execution.status}{reason}")
