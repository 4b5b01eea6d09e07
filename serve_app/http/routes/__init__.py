"""The HTTP routes. They raise; `serve_app.http.errors` answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import APIRouter, Response

from serve_app.http.schemas import ErrorBody, FindingsBody

Endpoint = TypeVar("Endpoint", bound=Callable[..., Awaitable[Response]])


def get(router: APIRouter, path: str, **documentation: Any) -> Callable[[Endpoint], Endpoint]:
    """Declare a GET route that answers HEAD too; OpenAPI shows GET alone."""

    def declare(endpoint: Endpoint) -> Endpoint:
        router.get(path, **documentation)(endpoint)
        router.head(path, include_in_schema=False)(endpoint)
        return endpoint

    return declare


def documented(
    body: type[Any] | None, *errors: int, status: int = 200, text: str = "Successful Response"
) -> dict[int | str, dict[str, Any]]:
    """Describe a route's answers for OpenAPI: its own, and errors in our shape."""
    answers: dict[int | str, dict[str, Any]] = {
        code: {
            "description": HTTPStatus(code).phrase,
            "model": FindingsBody if code == 422 else ErrorBody,
        }
        for code in (401, *errors)
    }
    answers[status] = {"description": text} | ({} if body is None else {"model": body})
    return answers
