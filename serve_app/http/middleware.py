"""Middleware in plain ASGI: `BaseHTTPMiddleware` costs a task per request."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.http.errors import BodyTooLarge
from serve_app.http.responses import json_response
from serve_app.http.tokens import Tokens

logger = logging.getLogger("ray.serve")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/liveness"})
"""Paths that need no token."""


class UnexpectedErrors:
    """Answers unhandled exceptions with 500 and a reference, under which they are logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def track_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, track_start)
        except Exception:
            reference = secrets.token_hex(6)
            logger.exception(
                "internal error %s: %s %s", reference, scope["method"], scope["path"][:200]
            )
            if started:
                raise  # the server closes the connection, so the client sees a truncated body
            response = json_response({"detail": "internal error", "reference": reference}, 500)
            await response(scope, receive, send)


class HeadWithoutBody:
    """Drops the bodies of responses to HEAD and keeps the headers of GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def drop_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app(scope, receive, drop_body)


class BodyLimit:
    """Refuses request bodies above a size, whether or not they announce it."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > self._limit:
            refusal = json_response({"detail": str(BodyTooLarge(self._limit))}, 413)
            await refusal(scope, receive, send)
            return
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise BodyTooLarge(self._limit)
            return message

        await self._app(scope, receive_bounded, send)


class BearerAuth:
    """Answers 401 to requests without a valid token, except on `OPEN_PATHS`."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            challenge, detail = "Bearer", "a bearer token is required"
        elif self._tokens.name_of(token) is None:
            challenge, detail = 'Bearer error="invalid_token"', "the bearer token is not valid"
        else:
            await self._app(scope, receive, send)
            return
        response = json_response({"detail": detail}, 401, {"WWW-Authenticate": challenge})
        await response(scope, receive, send)


class SameSiteWrites:
    """Refuses writes that a foreign web page makes through its visitor's browser.

    Otherwise any page could submit to, or delete from, a server on its visitor's own machine: CORS
    hides the response from the page but does not prevent the request. Browsers state the origin of
    a request in ``Sec-Fetch-Site``; other clients do not send that header.
    """

    def __init__(self, app: ASGIApp, allow_origins: Collection[str]) -> None:
        self._app = app
        self._allow_origins = frozenset(allow_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS:
            headers = Headers(scope=scope)
            foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
            if foreign and not self._allow_origins & {"*", headers.get("origin", "")}:
                refusal = json_response({"detail": "this origin is not allowed to call"}, 403)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
