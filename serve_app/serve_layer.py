"""Middleware around what Serve does before our API: in its proxy, and in each ingress replica.

Serve calls `middlewares` in these processes if RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.haproxy.launch import RETRY_AFTER_S
from serve_app.http.responses import json_response

SYSTEM_PATHS = "/-/"
"""Serve's own routes, whose text KubeRay's probes expect."""
NO_ROUTE = b"/-/routes for available routes."
"""End of Serve's answer to a path for which it knows no application, perhaps not yet."""
DECODED = {
    b"x-request-id",
    b"x-session-id",
    b"serve-multiplexed-model-id",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
}
"""Headers that Serve decodes as UTF-8, with ``-`` for ``_``. It answers 500 if it cannot."""
TEMPORARY = {408: "the request has taken too long", 503: "no replica can take the request now"}


def middlewares() -> list[Middleware]:
    """Return what Serve puts around its own HTTP layer."""
    return [Middleware(ServeResponses)]


class ServeResponses:
    """Converts Serve's own error responses to the form of our API, with 503 while it starts.

    Serve answers in plain text, with 404 until it knows the routes. Clients would take that for a
    missing execution, and a Zarr reader for a chunk of NaN. Responses of applications in JSON pass.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"].startswith(SYSTEM_PATHS):
            await self._app(scope, receive, send)
            return
        if not _serve_can_decode(scope):
            refusal = json_response({"detail": "a header is not valid UTF-8"}, 400)
            await refusal(scope, receive, send)
            return
        held: Message | None = None
        replaced = False

        async def send_corrected(message: Message) -> None:
            nonlocal held, replaced
            if message["type"] == "http.response.start" and _is_plain_error(message):
                held = message
                return
            if held is not None:
                start, held = held, None
                status = start["status"]
                if status == 404 and message.get("body", b"").endswith(NO_ROUTE):
                    status = 503
                replaced = status in TEMPORARY
                if replaced:
                    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
                    response = json_response({"detail": TEMPORARY[status]}, status, headers)
                    await response(scope, receive, send)
                else:
                    await send(start)
            if not replaced:
                await send(message)

        await self._app(scope, receive, send_corrected)


def _is_plain_error(start: Message) -> bool:
    kind = Headers(raw=list(start.get("headers", ()))).get("content-type", "")
    return start["status"] in (404, *TEMPORARY) and kind.startswith("text/plain")


def _serve_can_decode(scope: Scope) -> bool:
    try:
        for name, value in scope["headers"]:
            if name.lower().replace(b"_", b"-") in DECODED:
                value.decode()
    except UnicodeDecodeError:
        return False
    return True
