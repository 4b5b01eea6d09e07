"""Servers on loopback, each in its own thread."""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from aiohttp import web


@dataclass(frozen=True)
class Recorded:
    """A received request."""

    method: str
    path: str
    query: Mapping[str, str]
    authorized: bool
    """Whether it had an Authorization header."""
    token: str | None
    document: Any


class LoopbackServer:
    """An aiohttp server in a thread, on a free port.

    Parameters
    ----------
    tls : tuple of Path, optional
        Certificate and key.
    """

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self._tls = tls
        self.requests: list[Recorded] = []
        self.url = ""

    def __enter__(self) -> Self:
        started: threading.Event = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        if not started.wait(30):
            raise RuntimeError("the emulator does not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(30)

    def _serve(self, started: threading.Event) -> None:
        self._loop.run_until_complete(self._run(started))
        self._loop.close()

    async def _run(self, started: threading.Event) -> None:
        self._ended = asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        # Slow responses are not waited for when the server stops.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        context = None
        if self._tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*self._tls)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        started.set()
        await self._ended.wait()
        await runner.cleanup()
        slow = asyncio.all_tasks() - {asyncio.current_task()}
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    async def _record(self, request: web.Request) -> Recorded:
        try:
            document = await request.json() if request.can_read_body else None
        except ValueError:
            document = await request.text()
        authorization = request.headers.get("Authorization")
        recorded = Recorded(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            authorized=authorization is not None,
            token=authorization and authorization.removeprefix("Bearer "),
            document=document,
        )
        self.requests.append(recorded)
        return recorded

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError

    def calls(self, method: str, path: str = "") -> list[Recorded]:
        """Return the requests of a method whose path matches a pattern."""
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]


class ForeignServer(LoopbackServer):
    """A server that must not be called: it accepts and records every request."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        await self._record(request)
        return web.json_response({"id": "foreign", "status": "Succeeded"})
