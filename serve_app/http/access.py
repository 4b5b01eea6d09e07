"""Who may call: bearer tokens, web pages of other origins, names of the server."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.http.responses import json_response
from serve_app.http.tokens import Tokens

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/liveness"})
"""Paths that need no token."""
PRIVATE_DOMAINS = frozenset({"localhost", "local", "internal", "svc"})
"""Last labels of names that public DNS does not resolve: RFC 6761, RFC 6762, ICANN, Kubernetes."""


def _is_open(scope: Scope) -> bool:
    """Return whether a path is open; Serve leaves the route prefix in it, as ASGI requires."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) in OPEN_PATHS


class BearerAuth:
    """Answers 401 to requests without a valid token, except on `OPEN_PATHS`."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or _is_open(scope):
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

    Otherwise any page could submit to, or delete from, a server that its visitor reaches: CORS
    hides the response from the page but does not prevent the request. Browsers state the page's
    origin in ``Origin``, and to servers with https or on loopback also its relation to the server,
    in ``Sec-Fetch-Site``. Other clients send neither.
    """

    def __init__(self, app: ASGIApp, allow_origins: Collection[str]) -> None:
        self._app = app
        self._allow_origins = frozenset(allow_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if _is_foreign(headers) and not self._allow_origins & {"*", origin}:
                refusal = json_response({"detail": "this origin is not allowed to call"}, 403)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_foreign(headers: Headers) -> bool:
    """Return whether a page of another origin makes a request."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site not in ("none", "same-origin")
    # Without the scheme, which a proxy in front may change.
    return origin is not None and origin.partition("://")[2] != headers.get("host")


class KnownHosts:
    """Answers 421 to requests for names that anybody could have given to this server.

    For a server without tokens. A web page could otherwise have its own name resolved to the
    server's address (DNS rebinding), and call it from the visitor's browser as its own origin.
    Addresses, and names that no public DNS resolves, cannot be a page's own.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._allowed = {name.lower() for name in allowed_hosts} | {socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and not _is_open(scope):
            for host in Headers(scope=scope).getlist("host"):
                name = _name_of(host)
                if name not in self._allowed and not _is_private(name):
                    detail = (
                        f"this server requires no token and is not known as {name[:255]!r}; if it "
                        "is to be called by this name, add it to args.auth.allowed_hosts"
                    )
                    await json_response({"detail": detail}, 421)(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def _name_of(host: str) -> str:
    """Return the name or address in a Host header, without the port and brackets."""
    name = re.sub(r":[0-9]*$", "", host.strip().lower())
    return name.removeprefix("[").removesuffix("]").removesuffix(".")


def _is_private(name: str) -> bool:
    """Return whether a name is an address, or of a kind that public DNS does not resolve."""
    try:
        ip_address(name)
    except ValueError:
        last = name.rpartition(".")[2]
        # Browsers take a name whose last label is a number for an address, such as 127.1.
        return last == name or last in PRIVATE_DOMAINS or last.isdecimal()
    return True
