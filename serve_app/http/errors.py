"""Which error becomes which HTTP status. Routes raise; this table answers.

Bodies are always ``{"detail": …}``: a list of ``{loc, msg, type}`` where a part of the request is
wrong, text or an object otherwise. They never hold paths of the server, SQL or tracebacks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from deployments.runtime.metrics import REFUSALS
from serve_app.files.paths import ForbiddenPath, InvalidPath, ResultsUnavailable
from serve_app.http.context import context_of
from workflows.errors import (
    DeliveryForbidden,
    Earth2ServeError,
    ExecutionNotFound,
    IdempotencyConflict,
    IllegalTransition,
    InvalidParameters,
    Problem,
    QueueFull,
    ResultsNotFound,
    StorageFull,
    WorkflowNotFound,
    WorkflowUnavailable,
)

logger = logging.getLogger("ray.serve")

STORE_RETRY_S = 5
MAX_PROBLEMS = 50
NO_DISK = "insufficient_storage"
"""Type of the problem of a request that no disk here could ever hold."""
MAX_MESSAGE = 1000


class InvalidHeader(Earth2ServeError):
    """A request header that cannot be used."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message


class BodyTooLarge(Earth2ServeError):
    """A request body above the bound."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"the request body is larger than {self.limit} bytes"


class UnsupportedMediaType(Earth2ServeError):
    """A request body that says it is no JSON."""


class NoWorkflowExposed(Earth2ServeError):
    """A submit that names no workflow, where none is exposed."""


class SeveralWorkflowsExposed(Earth2ServeError):
    """A submit that names no workflow, where there is a choice."""


class TryLater(QueueFull):
    """The queue is full, with a guess when it will not be."""

    def __init__(self, queued: int, max_size: int, retry_after_s: int) -> None:
        super().__init__(queued, max_size)
        self.args = (queued, max_size, retry_after_s)
        self.retry_after_s = retry_after_s


class NoRoomNow(StorageFull):
    """A result has no room beside others, which need not stay; with a guess when to ask again."""

    def __init__(
        self, needed: int, left: int, at_most: int, reason: str, retry_after_s: int
    ) -> None:
        super().__init__(needed, left, at_most)
        self.args = (needed, left, at_most, reason, retry_after_s)
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.reason


class Unhealthy(Earth2ServeError):
    """The server cannot do its work; carries what was found."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(report)
        self.report = report


STATUS: dict[type[Exception], int] = {
    DeliveryForbidden: 403,
    InvalidParameters: 422,
    InvalidHeader: 422,
    IdempotencyConflict: 422,
    WorkflowNotFound: 404,
    ExecutionNotFound: 404,
    ResultsNotFound: 404,
    IllegalTransition: 409,
    SeveralWorkflowsExposed: 409,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    TryLater: 429,
    NoRoomNow: 503,
    ForbiddenPath: 403,
    InvalidPath: 400,
    ResultsUnavailable: 503,
    WorkflowUnavailable: 503,
    NoWorkflowExposed: 503,
    Unhealthy: 503,
    # SQLite: locked, disk full; PostgreSQL: away. And no connection left in the pool.
    sa.exc.OperationalError: 503,
    sa.exc.TimeoutError: 503,
}


def json_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with JSON, as quickly as that goes."""
    content = json.dumps(body, separators=(",", ":")).encode()
    return Response(content, status, headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Make an application answer errors by the table."""
    for kind in STATUS:
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(RequestValidationError, _refuse_request)
    app.add_exception_handler(HTTPException, _answer_http)


async def _answer(request: Request, error: Exception) -> Response:
    if reason := _want_of_room(error):
        context_of(request).metrics.add(REFUSALS, reason=reason)
    kind = next(kind for kind in type(error).__mro__ if kind in STATUS)
    return json_response({"detail": _detail(error)}, STATUS[kind], _headers(error))


def _want_of_room(error: Exception) -> str | None:
    """Say what a request for an execution found no room in; None if that is not what is wrong."""
    match error:
        case TryLater():
            return "queue_full"
        case NoRoomNow():
            return "disk_full"
        case InvalidParameters() if any(p.kind == NO_DISK for p in error.problems):
            return "disk_too_small"
        case _:
            return None


def _detail(error: Exception) -> Any:
    match error:
        case InvalidParameters():
            return [_problem(problem) for problem in error.problems[:MAX_PROBLEMS]]
        case InvalidHeader():
            return [_finding(["header", error.name], error.message, "value_error")]
        case IdempotencyConflict():
            return [_finding(["header", "Idempotency-Key"], str(error), "conflict")]
        case Unhealthy():
            return error.report
        case sa.exc.SQLAlchemyError():
            # Its text holds the statement and its values; those go to the log alone.
            logger.error("the execution store does not answer", exc_info=error)
            return "the execution store does not answer at the moment; try again"
        case _:
            return str(error)


def _headers(error: Exception) -> dict[str, str] | None:
    match error:
        case TryLater() | NoRoomNow():
            return {"Retry-After": str(error.retry_after_s)}
        case Unhealthy() | ResultsUnavailable() | WorkflowUnavailable() | sa.exc.SQLAlchemyError():
            return {"Retry-After": str(STORE_RETRY_S)}
        case _:
            return None


def _problem(problem: Problem) -> dict[str, Any]:
    parts = problem.field.split(".") if problem.field else []
    location = [int(part) if part.isdecimal() and len(part) < 10 else part[:100] for part in parts]
    return _finding(["body", *location], problem.message, problem.kind)


def _finding(location: Sequence[str | int], message: str, kind: str) -> dict[str, Any]:
    return {"loc": list(location), "msg": message[:MAX_MESSAGE], "type": kind}


async def _refuse_request(_request: Request, error: Any) -> Response:
    # Unlike FastAPI's own handler it does not send the input back.
    findings = [
        _finding(found["loc"], found["msg"], found["type"])
        for found in error.errors()[:MAX_PROBLEMS]
    ]
    return json_response({"detail": findings}, 422)


async def _answer_http(request: Request, error: Any) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return json_response({"detail": error.detail}, error.status_code, headers)


def _allowed_methods(request: Request) -> list[str]:
    """Collect the methods of all routes of a path; Starlette names the first route's alone."""
    return sorted(
        {
            method
            for route in request.app.routes
            if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
            for method in route.methods or ()
        }
    )
