"""Middleware in plain ASGI: `BaseHTTPMiddleware` costs a task per request."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from types import MappingProxyType

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.files.buffers import UNCOUNTED, Buffers, Share, share_of, split_tail
from serve_app.http.errors import RETRY_AFTER_S, BodyTooLarge
from serve_app.http.responses import json_response

logger = logging.getLogger("ray.serve")

BODY_TIME_LIMIT_S = 60.0
NO_MEMORY = "other clients that read or send slowly hold the memory for this; try again"
BODY_LOST = (
    "the body was lost: this server does not upgrade to another protocol, and reads no body after "
    "the header Upgrade; send the request without it (Java: HttpClient.Version.HTTP_1_1)"
)


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


class BoundedBuffers:
    """Bounds the memory for responses that clients do not read, over all requests.

    A body up to `UNCOUNTED` passes. A larger one is held until the client has read it, or refused
    if there is no room. Downloads, the only responses of several messages, hold theirs themselves.
    """

    def __init__(self, app: ASGIApp, buffers: Buffers) -> None:
        self._app = app
        self._buffers = buffers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        refused = False

        async def send_bounded(message: Message) -> None:
            nonlocal start, refused
            if message["type"] == "http.response.start":
                start = message
                return
            body = message.get("body", b"")
            is_large = len(body) > UNCOUNTED and not share.covers_response
            if start is not None:
                refused = is_large and not share.hold(len(body), share.buffers.total)
                if refused:
                    await _unavailable(NO_MEMORY)(scope, receive, send)
                else:
                    await send(start)
                start = None
            if refused:
                return
            if is_large:
                for piece in split_tail(body):
                    await send({**message, "body": piece, "more_body": True})
                # uvicorn waits until the client has read what was sent before.
                message = {**message, "body": b""}
            await send(message)

        with self._buffers.share(scope) as share:
            await self._app(scope, receive, send_bounded)


class BodyLimit:
    """Reads request bodies before the application runs, up to a size and for a limited time.

    Serve receives a body as fast as it is sent and keeps what nobody reads, so every request with a
    body is read here, also if its route ignores it.
    """

    def __init__(self, app: ASGIApp, limit: int, time_limit_s: float = BODY_TIME_LIMIT_S) -> None:
        self._app = app
        self._limit = limit
        self._time_limit_s = time_limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        if announced == "0" and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        if announced.isdecimal() and int(announced[:20]) > self._limit:
            refusal = json_response({"detail": str(BodyTooLarge(self._limit))}, 413)
            await refusal(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._time_limit_s):
                body: bytes | None = await self._read(receive, share_of(scope))
        except BodyTooLarge as error:
            # Its length is unknown, so the rest is not waited for.
            await _closing({"detail": str(error)}, 413)(scope, receive, send)
            return
        except TimeoutError:
            detail = f"the request body did not arrive within {self._time_limit_s:g} s"
            await _closing({"detail": detail}, 408)(scope, receive, send)
            return
        except _NoMemory:
            await _unavailable(NO_MEMORY, {"Connection": "close"})(scope, receive, send)
            return
        except ClientDisconnect:
            return
        if not body and "upgrade" in headers:
            # uvicorn takes the body for the protocol that it does not upgrade to.
            await _closing({"detail": BODY_LOST}, 400)(scope, receive, send)
            return

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive, share: Share) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            body += chunk
            if len(body) > self._limit:
                raise BodyTooLarge(self._limit)
            if len(body) > UNCOUNTED and not share.hold(
                len(body) - share.held, share.buffers.total
            ):
                raise _NoMemory
            if not message.get("more_body"):
                return bytes(body)


class _NoMemory(Exception):
    pass


def _unavailable(detail: str, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    return json_response({"detail": detail}, 503, {**headers, "Retry-After": str(RETRY_AFTER_S)})


def _closing(body: Mapping[str, str], status: int) -> Response:
    """Return a response after which the connection is closed: more of the request may follow."""
    return json_response(body, status, {"Connection": "close"})
