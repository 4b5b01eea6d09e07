"""HTTP errors: the status of each error class, and the handlers that build the response.

Routes raise; `STATUS_CODES` decides the status. Bodies are always ``{"detail": …}``: a list of
``{loc, msg, type}`` if parts of the request are invalid, text or an object otherwise. They never
contain paths of the server, SQL or tracebacks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from serve_app.http.responses import json_response
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

RETRY_AFTER_S = 5
"""Retry-After of errors that pass by themselves, such as a database that is restarting."""
MAX_PROBLEMS = 50
MAX_MESSAGE = 1000
"""Characters of one message."""
DISK_TOO_SMALL = "insufficient_storage"
"""Problem type of a request whose result could never fit on this server's disk."""


class InvalidHeader(Earth2ServeError):
    """A request header is invalid."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message


class BodyTooLarge(Earth2ServeError):
    """A request body exceeds the limit, in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"the request body is larger than {self.limit} bytes"


class UnsupportedMediaType(Earth2ServeError):
    """A request body is declared to be something other than JSON."""


class UnsupportedEncoding(UnsupportedMediaType):
    """A request body is compressed."""


class ResultsPending(Earth2ServeError):
    """A result file is requested of an execution that has not finished."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return f"no results yet, the execution is {self.status}"


class ResultsGone(Earth2ServeError):
    """Results, or a part of them, existed and have been removed or lost."""


class NoWorkflowExposed(Earth2ServeError):
    """A submit names no workflow, and none is exposed."""


class SeveralWorkflowsExposed(Earth2ServeError):
    """A submit names no workflow, and several are exposed."""


class QueueFullForNow(QueueFull):
    """The queue is full; carries an estimate of when it will not be."""

    def __init__(self, error: QueueFull, retry_after_s: int) -> None:
        super().__init__(error.queued, error.max_size)
        self.retry_after_s = retry_after_s


class StorageFullForNow(StorageFull):
    """A result does not fit beside others that may be removed; carries when to try again."""

    def __init__(self, error: StorageFull, reason: str, retry_after_s: int) -> None:
        super().__init__(error.needed, error.available, error.capacity)
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.reason


class Unhealthy(Earth2ServeError):
    """The server cannot work; carries the body of the response."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(report)
        self.report = report


STATUS_CODES: dict[type[Exception], int] = {
    InvalidPath: 400,
    DeliveryForbidden: 403,
    ForbiddenPath: 403,
    WorkflowNotFound: 404,
    ExecutionNotFound: 404,
    ResultsNotFound: 404,
    IllegalTransition: 409,
    SeveralWorkflowsExposed: 409,
    ResultsPending: 409,
    ResultsGone: 410,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    InvalidParameters: 422,
    InvalidHeader: 422,
    IdempotencyConflict: 422,
    QueueFullForNow: 429,
    StorageFullForNow: 503,
    ResultsUnavailable: 503,
    WorkflowUnavailable: 503,
    NoWorkflowExposed: 503,
    Unhealthy: 503,
    # SQLite: locked, disk full; PostgreSQL: unreachable. TimeoutError: connection pool exhausted.
    sa.exc.OperationalError: 503,
    sa.exc.TimeoutError: 503,
}


def add_exception_handlers(app: FastAPI) -> None:
    """Make an application answer errors as `STATUS_CODES` says."""
    for error_class in STATUS_CODES:
        app.add_exception_handler(error_class, _answer)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)


async def _answer(request: Request, error: Exception) -> Response:
    if reason := _refusal_reason(error):
        context_of(request).metrics.add(REFUSALS, reason=reason)
    status = next(STATUS_CODES[c] for c in type(error).__mro__ if c in STATUS_CODES)
    return json_response({"detail": _detail(error)}, status, _headers(error))


def _refusal_reason(error: Exception) -> str | None:
    """Return the `REFUSALS` label of a request refused for lack of capacity; None for others."""
    match error:
        case QueueFullForNow():
            return "queue_full"
        case StorageFullForNow():
            return "disk_full"
        case InvalidParameters() if any(p.kind == DISK_TOO_SMALL for p in error.problems):
            return "disk_too_small"
        case _:
            return None


def _detail(error: Exception) -> Any:
    match error:
        case InvalidParameters():
            return [_finding_of(problem) for problem in error.problems[:MAX_PROBLEMS]]
        case InvalidHeader():
            return [_finding(["header", error.name], error.message, "value_error")]
        case IdempotencyConflict():
            return [_finding(["header", "Idempotency-Key"], str(error), "conflict")]
        case Unhealthy():
            return error.report
        case sa.exc.SQLAlchemyError():
            # Its text contains the statement and its values, which only the log may show.
            logger.error("the execution store is not available", exc_info=error)
            return "the execution store is not available at the moment; try again"
        case _:
            return str(error)


def _headers(error: Exception) -> dict[str, str] | None:
    match error:
        case QueueFullForNow() | StorageFullForNow():
            return {"Retry-After": str(error.retry_after_s)}
        case UnsupportedEncoding():
            return {"Accept-Encoding": "identity"}  # RFC 9110, section 15.5.16
        case (
            ResultsPending()
            | ResultsUnavailable()
            | Unhealthy()
            | WorkflowUnavailable()
            | sa.exc.SQLAlchemyError()
        ):
            return {"Retry-After": str(RETRY_AFTER_S)}
        case _:
            return None


def _finding_of(problem: Problem) -> dict[str, Any]:
    parts = problem.field.split(".") if problem.field else []
    location = [int(part) if part.isdecimal() and len(part) < 10 else part[:100] for part in parts]
    return _finding(["body", *location], problem.message, problem.kind)


def _finding(location: Sequence[str | int], message: str, kind: str) -> dict[str, Any]:
    return {"loc": list(location), "msg": message[:MAX_MESSAGE], "type": kind}


async def _answer_validation_error(_request: Request, error: Any) -> Response:
    # Unlike FastAPI's own handler, this does not echo the input.
    findings = [
        _finding(found["loc"], found["msg"], found["type"])
        for found in error.errors()[:MAX_PROBLEMS]
    ]
    return json_response({"detail": findings}, 422)


async def _answer_http_exception(request: Request, error: Any) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return json_response({"detail": error.detail}, error.status_code, headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes of a path; Starlette names those of the first route only."""
    return sorted(
        {
            method
            for route in request.app.routes
            if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
            for method in route.methods or ()
        }
    )
