import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.http_client import Connection

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def answering(*pieces: bytes) -> AsyncIterator[Connection]:
    """Connect to a server that answers every request with the same pieces, one write each."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    connection = await Connection.open(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield connection
    finally:
        connection.close()
        server.close()


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world",),
        (b"HTTP/1.1 200 OK\r\nContent-", b"Length: 11\r\n\r", b"\nhello", b" world"),
        (CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",),
        (CHUNKED, b"5\r", b"\nhel", b"lo\r", b"\n6;name=value\r\n world\r\n0", b"\r\n\r", b"\n"),
        (CHUNKED + b"B\r\nhello world\r\n0\r\nTrailer: x\r\n", b"\r\n"),
    ],
    ids=["whole", "in pieces", "chunked", "chunked in pieces", "trailers"],
)
async def test_bodies_are_read_completely_and_the_connection_is_kept(
    pieces: tuple[bytes, ...],
) -> None:
    async with answering(*pieces) as connection:
        for _ in range(2):
            answer = await asyncio.wait_for(connection.get("/"), 5)
            assert answer == (200, 11, b"hello world")


async def test_a_body_that_is_not_kept_is_counted() -> None:
    async with answering(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n") as connection:
        answer = await connection.send(connection.prepare("GET", "/"), keep_body=False)
        assert answer == (200, 5, b"")


async def test_an_answer_of_unknown_length_is_refused() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\nhello") as connection:
        with pytest.raises(RuntimeError, match="without a length"):
            await asyncio.wait_for(connection.get("/"), 5)
