"""What happens around every request, as plain ASGI: `BaseHTTPMiddleware` costs a task each."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.http.errors import BodyTooLarge, json_response

logger = logging.getLogger("ray.serve")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class UnexpectedErrors:
    """Answer an error that nobody expected with a reference, and log it under that reference."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            reference = secrets.token_hex(6)
            logger.exception(
                "internal error %s: %s %s", reference, scope["method"], scope["path"][:200]
            )
            if started:
                raise  # the server cuts the connection, so that a partial body is seen as such
            response = json_response({"detail": "internal error", "reference": reference}, 500)
            await response(scope, receive, send)


class HeadWithoutBody:
    """Drop the bodies of answers to HEAD; their headers stay those of GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bare(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app(scope, receive, bare)


class BodyLimit:
    """Refuse request bodies above a size, whether they announce it or not."""

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

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise BodyTooLarge(self._limit)
            return message

        await self._app(scope, bounded, send)


class SameSiteWrites:
    """Refuse what a foreign web page makes its visitor's browser send.

    Without it any page could submit to, or delete from, a server on its visitor's own machine:
    the browser keeps the answer from the page, but the request has been made. Browsers say with
    ``Sec-Fetch-Site`` where a request comes from; other clients do not send it.
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
