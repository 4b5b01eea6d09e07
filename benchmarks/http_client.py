"""A minimal keep-alive HTTP client, so that the server is measured and not the client.

aiohttp takes several times as long for a request; on a machine with two cores that time would be
missing for the server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    length: int
    """Size of the body, bytes."""
    body: bytes
    """Empty if it was not kept."""

    def json(self) -> Any:
        """Decode the body of a successful answer.

        Raises
        ------
        RuntimeError
            With the answer, if it is an error.
        """
        if self.status not in (200, 202, 204):
            raise RuntimeError(f"HTTP {self.status}: {self.body[:500]!r}")
        return json.loads(self.body)


class _ChunkDecoder:
    """Decodes a chunked body (RFC 9112, section 7.1); trailers are dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Decode more bytes; return new bytes of the body, and whether the body is complete."""
        self._rest += data
        parts: list[bytes] = []
        while True:
            line, found, following = self._rest.partition(b"\r\n")
            if not found:
                return b"".join(parts), False
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                # An empty line ends the trailers; usually there are none.
                ended = following.startswith(b"\r\n") or b"\r\n\r\n" in following
                return b"".join(parts), ended
            if len(following) < size + 2:
                return b"".join(parts), False
            parts.append(following[:size])
            self._rest = following[size + 2 :]


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._in_body = False
        self._parts: list[bytes] | None = None
        self._status = self._expected = self._received = 0
        self._decoder: _ChunkDecoder | None = None
        self._answered: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, base: str) -> Connection:
        """Connect to a server, ``http://host:port``."""
        url = urlsplit(base)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: cls(url.netloc), url.hostname or "", url.port or 80
        )
        return connection

    def prepare(self, method: str, path: str, body: Any = None, **headers: str) -> bytes:
        """Return the bytes of a request; `body` is encoded as JSON."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if content:
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        return "\r\n".join([*lines, "\r\n"]).encode() + content

    async def send(self, request: bytes, *, keep_body: bool = True) -> Answer:
        """Send a prepared request and await its answer."""
        if self._transport is None:
            raise ConnectionError("the server has closed the connection")
        self._parts = [] if keep_body else None
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    async def get(self, path: str, **headers: str) -> Answer:
        """Send a GET request."""
        return await self.send(self.prepare("GET", path, **headers))

    async def post(self, path: str, body: Any) -> Answer:
        """Send a POST request with a JSON body."""
        return await self.send(self.prepare("POST", path, body))

    async def delete(self, path: str) -> Answer:
        """Send a DELETE request."""
        return await self.send(self.prepare("DELETE", path))

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    # Callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the pending request."""
        self._transport = None
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionError("closed without an answer"))

    def data_received(self, data: bytes) -> None:
        """Parse a piece of an answer."""
        if not self._in_body:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[:end].lower(), self._head[end + 4 :]
            self._head = b""
            self._begin_body(head)
        ended = False
        if self._decoder is not None:
            data, ended = self._decoder.feed(data)
        self._received += len(data)
        if self._parts is not None:
            self._parts.append(data)
        if self._decoder is None:
            ended = self._received >= self._expected
        if ended and self._answered is not None:
            self._in_body = False
            body = b"" if self._parts is None else b"".join(self._parts)
            self._answered.set_result(Answer(self._status, self._received, body))

    def _begin_body(self, head: bytes) -> None:
        self._in_body = True
        self._received = 0
        self._status = int(head[9:12])
        self._decoder = _ChunkDecoder() if b"\r\ntransfer-encoding: chunked" in head else None
        _, found, rest = head.partition(b"\r\ncontent-length:")
        if not found and self._decoder is None and self._status not in (204, 304):
            raise RuntimeError(f"an answer without a length: {head[:200]!r}")
        self._expected = int(rest.partition(b"\r\n")[0]) if found else 0


@dataclass(frozen=True)
class Load:
    """Latencies and rate of a number of clients."""

    clients: int
    latencies_s: list[float]
    wall_s: float
    statuses: dict[int, int]

    @property
    def p50_ms(self) -> float:
        """Median latency, ms."""
        return 1e3 * median(self.latencies_s)

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latency, ms."""
        ordered = sorted(self.latencies_s)
        return 1e3 * ordered[round(0.99 * (len(ordered) - 1))]

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return len(self.latencies_s) / self.wall_s


async def load(
    base: str,
    prepare: Callable[[Connection], bytes],
    *,
    clients: int,
    requests: int,
    answers: list[Answer] | None = None,
) -> Load:
    """Send requests over keep-alive connections, each as soon as the previous one is answered.

    A tenth more are sent beforehand and not counted.

    Parameters
    ----------
    answers : list of Answer, optional
        Receives every answer, including those sent beforehand.
    """
    connections = await asyncio.gather(*(Connection.open(base) for _ in range(clients)))
    request = prepare(connections[0])
    latencies: list[float] = []
    statuses: Counter[int] = Counter()

    async def client(connection: Connection, remaining: Iterator[int]) -> None:
        for _ in remaining:
            started = time.perf_counter()
            answer = await connection.send(request)
            latencies.append(time.perf_counter() - started)
            statuses[answer.status] += 1
            if answers is not None:
                answers.append(answer)

    async def all_clients(count: int) -> float:
        remaining = iter(range(count))
        started = time.perf_counter()
        await asyncio.gather(*(client(connection, remaining) for connection in connections))
        return time.perf_counter() - started

    try:
        await all_clients(max(clients, requests // 10))
        latencies.clear()
        statuses.clear()
        wall = await all_clients(requests)
    finally:
        for connection in connections:
            connection.close()
    return Load(clients, latencies, wall, dict(statuses))
