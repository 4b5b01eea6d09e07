"""Responses of Serve's own HTTP layer."""

from __future__ import annotations

import httpx
import pytest
from ray.serve._private import constants
from ray.serve._private.http_util import (
    convert_object_to_asgi_messages,
    validate_http_proxy_callback_return,
)
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.__main__ import ENVIRONMENT
from serve_app.http.errors import RETRY_AFTER_S
from serve_app.http.responses import json_response
from serve_app.serve_layer import DECODED, ServeResponses, middlewares

NOT_FOUND = "Path '/x' not found. Ping http://.../-/routes for available routes."


def serve_answers(text: str, status: int) -> ASGIApp:
    """Answer as Serve's proxy does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in convert_object_to_asgi_messages(text, status_code=status):
            await send(message)

    return app


async def get(
    app: ASGIApp, path: str = "/x", headers: dict[str, bytes] | None = None
) -> httpx.Response:
    transport = httpx.ASGITransport(ServeResponses(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.get(path, headers=headers)


def test_serve_takes_the_middleware() -> None:
    module, _, name = ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert (module, name) == (middlewares.__module__, middlewares.__name__)
    assert hasattr(constants, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH")
    assert len(validate_http_proxy_callback_return(middlewares())) == 1


@pytest.mark.parametrize(
    ("status", "text", "answered"),
    [
        (404, NOT_FOUND, 503),
        (503, "Request dropped due to backpressure", 503),
        (408, "Request abc timed out after 3s.", 408),
    ],
)
async def test_serves_own_errors_have_the_form_of_the_api(
    status: int, text: str, answered: int
) -> None:
    response = await get(serve_answers(text, status))
    assert response.status_code == answered
    assert list(response.json()) == ["detail"]
    assert response.headers.get("retry-after") == (str(RETRY_AFTER_S) if answered == 503 else None)


@pytest.mark.parametrize(
    "response",
    [
        json_response({"detail": "no such execution"}, 404),
        json_response({"detail": "full"}, 503, {"Retry-After": "9"}),
        PlainTextResponse("not here", 404),
        PlainTextResponse("metrics"),
        Response(status_code=304),
    ],
)
async def test_responses_of_applications_are_unchanged(response: Response) -> None:
    received = await get(response)
    assert received.status_code == response.status_code
    assert received.content == response.body
    assert received.headers.raw == response.raw_headers


async def test_probes_of_serve_are_unchanged() -> None:
    assert (await get(serve_answers("draining", 503), "/-/healthz")).text == "draining"


def test_the_headers_are_those_of_serve() -> None:
    names = (
        constants.SERVE_HTTP_REQUEST_ID_HEADER,
        constants.SERVE_SESSION_ID,
        constants.SERVE_MULTIPLEXED_MODEL_ID,
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    )
    assert {name.lower().replace("_", "-").encode() for name in names} == DECODED


@pytest.mark.parametrize("name", ["X-Request-ID", "X-Session-Id", "serve_multiplexed_model_id"])
async def test_headers_that_serve_cannot_decode_are_refused(name: str) -> None:
    response = await get(json_response("reached"), headers={name: b"\xff"})
    assert response.status_code == 400
    assert response.json() == {"detail": "a header is not valid UTF-8"}


@pytest.mark.parametrize("name", ["Authorization", "User-Agent"])
async def test_other_headers_may_hold_any_character(name: str) -> None:
    response = await get(json_response("reached"), headers={name: b"Bearer \xff"})
    assert response.json() == "reached"
