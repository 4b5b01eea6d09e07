"""Clients that hold a server's connections: ``python -m benchmarks.hostile_clients JSON``.

They run apart from the clients whose latencies are measured. A line on standard output tells that
all are connected, and at the end one with the counts of what they were answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections import Counter
from dataclasses import asdict, dataclass

import uvloop

BLOCK = b"10000\r\n" + bytes(0x10000) + b"\r\n"
"""One chunk of an endless body."""
BLOCK_PAUSE_S = 0.05
RECONNECT_S = 0.5
RETRY_AFTER_S = 5
"""After an error, as the server asks of those that poll."""
RECEIVE_BUFFER = 4096


@dataclass(frozen=True)
class Clients:
    """How many clients of each kind connect to a server, and for how long."""

    port: int
    status_path: str
    """Long-polled."""
    file_path: str
    """Requested by clients that do not read it."""
    submit_path: str
    """Receives bodies that do not end."""
    silent: int
    polls: int
    readers: int
    bodies: int
    ramp_s: float
    """Time over which they connect."""
    hold_s: float
    """Time for which they stay afterwards."""


class _Crowd:
    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._answers: Counter[str] = Counter()

    async def run(self) -> None:
        kinds = {
            self._silent: self._clients.silent,
            self._poll: self._clients.polls,
            self._read_nothing: self._clients.readers,
            self._send_endlessly: self._clients.bodies,
        }
        tasks = [
            asyncio.create_task(self._later(client, self._clients.ramp_s * number / count))
            for client, count in kinds.items()
            for number in range(count)
        ]
        await asyncio.sleep(self._clients.ramp_s)
        print("connected", flush=True)
        await asyncio.sleep(self._clients.hold_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        print(json.dumps(self._answers), flush=True)

    async def _later(self, client, delay_s: float) -> None:  # type: ignore[no-untyped-def]
        await asyncio.sleep(delay_s)
        while True:
            try:
                await client()
            except (OSError, asyncio.IncompleteReadError) as error:
                self._answers[f"{client.__name__[1:]}: {type(error).__name__}"] += 1
            await asyncio.sleep(RECONNECT_S)

    async def _connect(self, receive_buffer: int = 0) -> _Connection:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._clients.port))
        return _Connection(sock)

    async def _silent(self) -> None:
        """Connect, send nothing, and wait until the server closes the connection."""
        with await self._connect() as connection:
            await connection.receive()
        self._answers["silent: closed"] += 1

    async def _poll(self) -> None:
        path = f"{self._clients.status_path}?wait=30"
        with await self._connect() as connection:
            while True:
                await connection.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                status, length = await connection.head()
                self._answers[f"poll: {status}"] += 1
                await connection.skip(length)
                if status != 200:
                    await asyncio.sleep(RETRY_AFTER_S)

    async def _read_nothing(self) -> None:
        with await self._connect(RECEIVE_BUFFER) as connection:
            path = self._clients.file_path
            await connection.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await asyncio.Future()

    async def _send_endlessly(self) -> None:
        with await self._connect() as connection:
            await connection.send(
                f"POST {self._clients.submit_path} HTTP/1.1\r\nHost: localhost\r\n"
                "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            )
            answer = asyncio.ensure_future(connection.head())
            while not answer.done():
                with contextlib.suppress(ConnectionError):
                    await connection.send(BLOCK)
                await asyncio.sleep(BLOCK_PAUSE_S)
            status, _ = await answer
            self._answers[f"body: {status}"] += 1


class _Connection:
    """A socket that is closed with the block that holds it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self._sock, 1 << 16)

    async def head(self) -> tuple[int, int]:
        """Return status and length of the next answer; its body follows."""
        while b"\r\n\r\n" not in self._received:
            if not (data := await self.receive()):
                raise asyncio.IncompleteReadError(self._received, None)
            self._received += data
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (ln.partition(":") for ln in lines)}
        return int(first.split()[1]), int(headers.get("content-length", 0))

    async def skip(self, length: int) -> None:
        """Read a body."""
        while len(self._received) < length:
            if not (data := await self.receive()):
                raise asyncio.IncompleteReadError(self._received, length)
            self._received += data
        self._received = self._received[length:]


def command(clients: Clients) -> list[str]:
    """Return the command that runs the clients."""
    return [sys.executable, "-m", "benchmarks.hostile_clients", json.dumps(asdict(clients))]


if __name__ == "__main__":
    os.nice(19)  # clients have machines of their own
    uvloop.run(_Crowd(Clients(**json.loads(sys.argv[1]))).run())
