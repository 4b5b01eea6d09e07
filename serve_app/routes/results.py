"""What an execution has made: the manifest and the files."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve_app import schemas
from serve_app.context import context_of
from serve_app.errors import json_response
from serve_app.files import ResultFile
from serve_app.routes import documented, get
from workflows.errors import ResultsNotFound
from workflows.execution import FINISHED, Execution, Status

router = APIRouter(prefix="/v1/infer", tags=["results"])


@get(
    router,
    "/{workflow}/{execution_id}/results",
    responses=documented(dict[str, object], 404, 503)
    | {202: {"model": schemas.ErrorBody, "description": "Not finished yet"}},
)
async def results(request: Request, workflow: str, execution_id: str) -> Response:
    """Give the manifest: which files there are and how they came about."""
    execution = await context_of(request).execution(workflow, execution_id)
    if execution.status not in FINISHED:
        pending = {
            "message": f"the execution is {execution.status}; ask again later",
            "status": execution.status,
            "timestamp": schemas.now(),
        }
        return json_response({"detail": pending}, 202)
    _check_available(execution, packaged=execution.results is not None)
    return json_response(schemas.results_body(execution))


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
    folder = context.options.results_dir / workflow / execution_id
    return await ResultFile.open(folder, relative, request)


def _check_available(execution: Execution, *, packaged: bool) -> None:
    """Refuse what was never packaged, or is gone.

    An execution that failed after packaging, say at `register`, keeps its results.
    """
    if execution.status == Status.COMPLETED or (execution.status == Status.FAILED and packaged):
        return
    reason = f": {execution.error_message}" if execution.error_message else ""
    raise ResultsNotFound(f"no results, the execution is {execution.status}{reason}")
