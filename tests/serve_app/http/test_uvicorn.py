"""The application in uvicorn, with the receiving task that a replica of Serve puts between them."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from serve_app.files.buffers import Buffers
from serve_app.files.serving import CHUNK_SIZE, SMALL_CHUNK_SIZE
from tests.serve_app.conftest import URL, WORKFLOW

JAVA = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
)
"""What Java's HttpClient adds to its first request to a server."""


def in_serve(app: ASGIApp) -> ASGIApp:
    """Return an application with the receiver that Serve's replicas give it."""

    async def replica(scope: Scope, receive: Receive, send: Send) -> None:
        receiver = ASGIDIReceiveProxy(scope, receive, asyncio.get_running_loop())
        receiving = receiver.fetch_until_disconnect_task()
        request = asyncio.ensure_future(app(scope, receiver, send))
        await asyncio.wait({receiving, request}, return_when=asyncio.FIRST_COMPLETED)
        for task in (receiving, request):
            task.cancel()
        await asyncio.gather(receiving, request, return_exceptions=True)

    return replica


class Client:
    """Raw connections to a server."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._open: list[socket.socket] = []

    async def send(self, method: str, target: str, headers: str = "", body: str = "") -> Any:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._open.append(connection)
        await self._loop.sock_connect(connection, self._address)
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
        await self._loop.sock_sendall(connection, (head + body).encode())
        return connection

    async def response(self, connection: Any) -> tuple[int, str]:
        """Return the status and the body of a short response."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += await self._loop.sock_recv(connection, 65536)
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
        while len(body) < length:
            body += await self._loop.sock_recv(connection, 65536)
        return int(head.split()[1]), body.decode()

    def close(self) -> None:
        for connection in self._open:
            connection.close()


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[Client]:
    config = uvicorn.Config(in_serve(app), lifespan="off", http="httptools", log_level="critical")
    config.load()
    state = ServerState()

    def protocol() -> asyncio.Protocol:
        created: asyncio.Protocol = config.http_protocol_class(
            config=config, server_state=state, app_state={}
        )
        return created

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    client = Client(server.sockets[0].getsockname())
    async with asyncio.timeout(30):
        yield client
    client.close()
    server.close()
    await asyncio.gather(*state.tasks, return_exceptions=True)


async def until_held(buffers: Buffers, size: int) -> None:
    while buffers.held != size:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_readers_that_do_not_read_share_the_memory(serve: Any) -> None:
    buffers = Buffers(large_chunks=2 * (CHUNK_SIZE + SMALL_CHUNK_SIZE))
    service = serve(buffers=buffers)
    execution_id = await service.completed({"results.nc": b"x" * (32 << 20)})
    target = f"{URL}/{execution_id}/results/results.nc"
    async with serving(service.app) as client:
        for _ in range(2):
            await client.send("GET", target)
        await until_held(buffers, 2 * (CHUNK_SIZE + SMALL_CHUNK_SIZE))
        for _ in range(3):
            await client.send("GET", target)
        await until_held(buffers, 2 * CHUNK_SIZE + 5 * SMALL_CHUNK_SIZE)
        assert (await client.response(await client.send("GET", "/liveness")))[0] == 200
        client.close()
        await until_held(buffers, 0)


async def test_an_endless_body_ends_the_connection_of_a_route_that_waits(serve: Any) -> None:
    service = serve(limits={"max_body_mb": 0.01})
    execution_id = await service.completed()
    chunked = "Transfer-Encoding: chunked\r\n"
    async with serving(service.app) as client:
        # Nobody removes the execution, so that the route waits.
        connection = await client.send("DELETE", f"{URL}/{execution_id}?purge=true", chunked)

        async def send_forever() -> None:
            with suppress(OSError):
                while True:
                    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
                    await asyncio.get_running_loop().sock_sendall(connection, chunk)

        sending = asyncio.create_task(send_forever())
        assert (await client.response(connection))[0] == 413
        await sending
    assert service.store.get(WORKFLOW, execution_id)


@pytest.mark.parametrize("framing", ["Content-Length: 18\r\n", "Transfer-Encoding: chunked\r\n"])
async def test_a_body_that_uvicorn_drops_is_named_as_the_reason(serve: Any, framing: str) -> None:
    body = '{"parameters": {}}'
    if "chunked" in framing:
        body = f"12\r\n{body}\r\n0\r\n\r\n"
    service = serve()
    async with serving(service.app) as client:
        connection = await client.send("POST", URL, JAVA + framing, body)
        status, text = await client.response(connection)
        assert (status, "Upgrade" in text) == (400, True)
        assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""
        # Other requests may ask for an upgrade.
        connection = await client.send("GET", "/liveness", JAVA)
        assert (await client.response(connection))[0] == 200
    assert service.store.list_executions(WORKFLOW) == []
