"""The bound on the memory for slow clients, and downloads that reach it."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from deployments.azure.blobs import Blob, Blobs
from serve_app.files.blob import BlobFolder
from serve_app.files.buffers import TRIM_FROM, Buffers, Share
from serve_app.files.disk import DiskFolder
from serve_app.files.paths import ResultsUnavailable
from serve_app.files.protocols import Folder
from serve_app.files.serving import CHUNK_SIZE, SMALL_CHUNK_SIZE, ResultFile
from tests.serve_app.files.conftest import LARGE

HALF = LARGE[: len(LARGE) // 4]
"""Small enough to be read at once."""


def test_all_requests_together_hold_at_most_the_bound() -> None:
    buffers = Buffers(total=10)
    with buffers.share({}) as one, buffers.share({}) as other:
        assert one.hold(6, buffers.total)
        assert not other.hold(5, buffers.total)
        assert other.hold(4, buffers.total)
        one.release(6)
        assert other.hold(6, buffers.total)
        assert buffers.held == 10
    assert buffers.held == 0


def test_a_thread_that_outlives_its_request_holds_nothing() -> None:
    buffers = Buffers()
    with buffers.share({}) as share:
        assert share.hold(1, buffers.total)
    assert not share.hold(1, buffers.total)
    assert buffers.held == 0


def test_a_request_that_fails_gives_its_share_back() -> None:
    buffers = Buffers()
    with pytest.raises(RuntimeError), buffers.share({}) as share:
        share.hold(1, buffers.total)
        raise RuntimeError
    assert buffers.held == 0


async def test_freed_memory_is_returned_once_after_much_was_held() -> None:
    trimmed: list[int] = []
    done = threading.Event()

    def trim() -> None:
        trimmed.append(buffers.held)
        done.set()

    buffers = Buffers(trim=trim, trim_after_s=0.0)
    with buffers.share({}) as share:
        assert share.hold(TRIM_FROM - 1, buffers.total)
        share.release(TRIM_FROM - 1)
        assert not done.is_set()
        assert share.hold(TRIM_FROM, buffers.total)
        assert not done.is_set()
    assert await asyncio.to_thread(done.wait, 10)
    assert trimmed == [0]


@pytest.fixture
def folder(tmp_path: Path) -> DiskFolder:
    (tmp_path / "large").write_bytes(LARGE)
    (tmp_path / "small").write_bytes(HALF)
    return DiskFolder(tmp_path)


class Reader:
    """A client that takes one chunk with each of its `reads`."""

    def __init__(self, folder: Folder, buffers: Buffers, name: str) -> None:
        self.buffers = buffers
        self.folder = folder
        self.name = name
        self.sent: asyncio.Queue[bytes] = asyncio.Queue()
        self._chunk = b""
        self.reads = asyncio.Semaphore(0)

    async def __call__(self) -> None:
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
        with self.buffers.share(scope):
            response = await ResultFile.open(self.folder, self.name, Request(scope))
            await response(scope, self._connected, self._send)

    async def _connected(self) -> Any:
        await asyncio.Event().wait()

    async def _send(self, message: Any) -> None:
        self._chunk += message.get("body", b"")
        # As in uvicorn, the message after a chunk waits until it has been read.
        if message["type"] == "http.response.body" and not message["body"] and self._chunk:
            self.sent.put_nowait(self._chunk)
            self._chunk = b""
            await self.reads.acquire()


async def received(reader: Reader) -> list[bytes]:
    """Read a response to its end; return its messages."""
    task = asyncio.create_task(reader())
    messages = []
    while not task.done():
        message = asyncio.ensure_future(reader.sent.get())
        await asyncio.wait({task, message}, return_when=asyncio.FIRST_COMPLETED)
        if message.done():
            messages.append(message.result())
            reader.reads.release()
        message.cancel()
    await task
    return messages


async def test_readers_that_do_not_read_share_the_memory_for_large_chunks(
    folder: DiskFolder,
) -> None:
    buffers = Buffers(large_chunks=2 * CHUNK_SIZE)
    async with asyncio.timeout(30):
        stuck = [Reader(folder, buffers, "large") for _ in range(8)]
        tasks = [asyncio.create_task(reader()) for reader in stuck]
        sizes = [len(await reader.sent.get()) for reader in stuck]
        assert sorted(sizes) == [SMALL_CHUNK_SIZE] * 7 + [CHUNK_SIZE]
        assert buffers.held <= 2 * CHUNK_SIZE + 8 * SMALL_CHUNK_SIZE
        # Others are served completely, in small pieces or large ones.
        for name, content in (("large", LARGE), ("small", HALF)):
            assert b"".join(await received(Reader(folder, buffers, name))) == content
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert buffers.held == 0


async def test_a_download_becomes_fast_again_when_there_is_room(folder: DiskFolder) -> None:
    buffers = Buffers(large_chunks=CHUNK_SIZE)
    other = Share(buffers)
    assert other.hold(CHUNK_SIZE, buffers.large_chunks)
    reader = Reader(folder, buffers, "large")
    async with asyncio.timeout(30):
        task = asyncio.create_task(reader())
        assert len(await reader.sent.get()) == SMALL_CHUNK_SIZE
        other.close()
        buffers.large_chunks += 2 * SMALL_CHUNK_SIZE
        reader.reads.release()
        assert len(await reader.sent.get()) == CHUNK_SIZE
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_download_for_which_there_is_no_room_is_refused(folder: DiskFolder) -> None:
    buffers = Buffers(large_chunks=0, downloads=SMALL_CHUNK_SIZE)
    async with asyncio.timeout(30):
        stuck = Reader(folder, buffers, "large")
        task = asyncio.create_task(stuck())
        await stuck.sent.get()
        for name in ("large", "small"):
            with pytest.raises(ResultsUnavailable, match="too many slow downloads"):
                await Reader(folder, buffers, name)()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert b"".join(await received(Reader(folder, buffers, "large"))) == LARGE


class InMemory(Blobs):
    """A container whose blobs all have the same content; each read returns a copy."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.parts: list[range] = []

    def open(self, key: str, at_most: int) -> tuple[Blob, bytes | None]:
        size = len(self.content)
        blob = Blob(key, size, None, '"1"', datetime.now(UTC), is_folder=False)
        return blob, bytes(self.content) if size <= at_most else None

    def read(self, blob: Blob, part: range) -> bytes:
        self.parts.append(part)
        return bytes(self.content[part.start : part.stop])


@pytest.mark.parametrize("large_chunks", [0, 64 << 20], ids=["without room", "with room"])
async def test_waiting_downloads_of_blobs_hold_what_is_counted(large_chunks: int) -> None:
    buffers = Buffers(large_chunks=large_chunks)
    folder = BlobFolder(InMemory(bytes(CHUNK_SIZE)), "workflow/exec_1")
    responses = []
    with ExitStack() as shares:
        tracemalloc.start()
        shares.callback(tracemalloc.stop)
        for _ in range(4):
            scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
            shares.enter_context(buffers.share(scope))
            responses.append(await ResultFile.open(folder, "chunk", Request(scope)))
        held, _ = tracemalloc.get_traced_memory()
        assert held < buffers.held + (1 << 20)


async def test_a_blob_for_which_there_is_no_room_is_read_in_counted_parts() -> None:
    buffers = Buffers(large_chunks=0)
    blobs = InMemory(HALF)
    reader = Reader(BlobFolder(blobs, "workflow/exec_1"), buffers, "small")
    async with asyncio.timeout(30):
        task = asyncio.create_task(reader())
        body = [await reader.sent.get()]
        # One is sent, and others are read ahead.
        assert buffers.held >= sum(map(len, blobs.parts)) >= SMALL_CHUNK_SIZE
        reader.reads.release()
        while sum(map(len, body)) < len(HALF):
            body.append(await reader.sent.get())
            reader.reads.release()
        await task
    assert b"".join(body) == HALF
    assert max(map(len, blobs.parts)) == SMALL_CHUNK_SIZE
