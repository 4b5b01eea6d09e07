"""The HTTP routes, and how to declare them. `serve_app.http.errors` handles what they raise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import APIRouter, Response

from serve_app.http.schemas import ErrorBody, FindingsBody

Endpoint = TypeVar("Endpoint", bound=Callable[..., Awaitable[Response]])


def get(router: APIRouter, path: str, **documentation: Any) -> Callable[[Endpoint], Endpoint]:
    """Declare a GET route that also answers HEAD, which OpenAPI does not show."""

    def declare(endpoint: Endpoint) -> Endpoint:
        router.get(path, **documentation)(endpoint)
        router.head(path, include_in_schema=False)(endpoint)
        return endpoint

    return declare


def documented(body: type[Any] | None, *errors: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of a route's responses for OpenAPI.

    Parameters
    ----------
    body : type or None
        Model of the body with status 200.
    *errors : int
        Statuses of errors besides 401, with bodies as in `serve_app.http.errors`.
    """
    responses: dict[int | str, dict[str, Any]] = {
        code: {
            "description": HTTPStatus(code).phrase,
            "model": FindingsBody if code == 422 else ErrorBody,
        }
        for code in (401, *errors)
    }
    responses[200] = {"description": "Successful Response"}
    if body is not None:
        responses[200]["model"] = body
    return responses
