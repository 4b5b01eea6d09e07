"""A proxy in front of Blob Storage with faults on request."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from yarl import URL

from deployments.azure.options import AzureOptions
from tests.emulators.loopback import LoopbackServer, Recorded

RESET_AFTER = 64 * 1024
"""Bytes of a body, if it is that long."""
_NOT_FORWARDED = {"connection", "content-encoding", "content-length", "host", "transfer-encoding"}

Action = Callable[[web.Request], Awaitable[web.StreamResponse | bytes | None]]
"""Returns a response, or the body to forward, or None to forward the received one."""


@dataclass
class Fault:
    """A disturbance of the next few requests that match a pattern."""

    meant: re.Pattern[str]
    action: Action
    left: int


class FlakyProxy(LoopbackServer):
    """Forwards requests to one server, except for requested faults.

    A fault applies to requests whose ``METHOD path?query`` contains a match of its pattern. Faults
    are used up in the order in which they were requested.

    Parameters
    ----------
    upstream : str
        Endpoint of the account.
    certificate : tuple of Path
        Certificate and key of the proxy; the certificate is also trusted upstream.
    """

    def __init__(self, upstream: str, certificate: tuple[Path, Path]) -> None:
        super().__init__(certificate)
        self._upstream = f"{urlsplit(upstream).scheme}://{urlsplit(upstream).netloc}"
        self._account = urlsplit(upstream).path
        self._tls_upstream = AzureOptions(ca_file=certificate[0]).tls()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._session: aiohttp.ClientSession | None = None

    @property
    def endpoint(self) -> str:
        """Endpoint of the account, through the proxy."""
        return self.url + self._account

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result()
        super().__exit__()

    def answer(
        self,
        status: int,
        code: str | None = None,
        *,
        meant: str = "",
        times: int = 1,
        retry_after_s: float | None = None,
        message: str = "Try again.",
    ) -> None:
        """Respond with an error; without a code, as an intermediary might."""
        headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
        body = "<html>Try again.</html>"
        if code is not None:
            headers |= {"x-ms-error-code": code, "Content-Type": "application/xml"}
            body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"

        async def action(request: web.Request) -> web.StreamResponse:
            await request.read()
            return web.Response(status=status, headers=headers, text=body)

        self._add(meant, action, times)

    def reset(self, *, meant: str = "", times: int = 1) -> None:
        """Reset the connection in the middle of a body."""

        async def action(request: web.Request) -> web.StreamResponse:
            taken = 0
            async for part in request.content.iter_any():
                taken += len(part)
                if taken >= RESET_AFTER:
                    break
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        self._add(meant, action, times)

    def delay(self, seconds: float, *, meant: str = "", times: int = 1) -> None:
        """Forward a request after a delay."""

        async def action(request: web.Request) -> None:
            await asyncio.sleep(seconds)

        self._add(meant, action, times)

    def damage(self, *, meant: str = "", times: int = 1) -> None:
        """Change the first byte of a body."""

        async def action(request: web.Request) -> bytes:
            body = await request.read()
            return bytes([body[0] ^ 1]) + body[1:]

        self._add(meant, action, times)

    def asked(self, meant: str) -> list[str]:
        """Return the matching requests as ``METHOD path?query``, in order."""
        lines = [f"{each.method} {each.path}" for each in self.requests]
        return [line for line in lines if re.search(meant, line)]

    def _add(self, meant: str, action: Action, times: int) -> None:
        with self._lock:
            self._faults.append(Fault(re.compile(meant), action, times))

    def _fault(self, line: str) -> Action | None:
        with self._lock:
            for fault in self._faults:
                if fault.left > 0 and fault.meant.search(line):
                    fault.left -= 1
                    return fault.action
        return None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path
        authorized = "Authorization" in request.headers
        self.requests.append(Recorded(request.method, path, {}, authorized, None, None))
        body: bytes | None = None
        if (action := self._fault(f"{request.method} {path}")) is not None:
            outcome = await action(request)
            if isinstance(outcome, web.StreamResponse):
                return outcome
            body = outcome
        if body is None:
            body = await request.read()
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _NOT_FORWARDED}
        async with self._session.request(
            request.method,
            URL(self._upstream + path, encoded=True),
            headers=headers,
            data=body,
            ssl=self._tls_upstream,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding"),
        ) as answer:
            content = await answer.read()
            passed = {k: v for k, v in answer.headers.items() if k.lower() not in _NOT_FORWARDED}
            if request.method == "HEAD":
                passed["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, headers=passed, body=content)
