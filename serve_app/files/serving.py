"""HTTP responses with result files: read in chunks, and sent as fast as the client reads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import ParamSpec, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from deployments.runtime.log_context import ContextThreadPool
from serve_app.files.buffers import UNCOUNTED, share_of, split_tail
from serve_app.files.paths import ResultsUnavailable
from serve_app.files.protocols import Folder, OpenedFile
from serve_app.files.response_head import Part, respond

CHUNK_SIZE = 4 << 20
"""Bytes per read: 64 KiB reaches 79 MB/s through Serve, 4 MiB 1.1 GB/s, 16 MiB less."""
SMALL_CHUNK_SIZE = 128 << 10
"""Bytes per read while clients that read slowly hold all the memory for larger ones."""
SMALL = CHUNK_SIZE
"""Size up to which a body is read when the file is opened, and sent as one message, bytes. A Zarr
chunk, which holds one map at 0.25 degrees, is just below."""

THREADS = 40
"""Files that are opened or read at once; reads from a container mostly wait."""

P = ParamSpec("P")
T = TypeVar("T")

_threads = ContextThreadPool(THREADS, "files")

_PARTIAL = {"range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"}
"""Headers by which a response may contain less than the whole file."""

CountBytes = Callable[[int], None]
"""Called with the size of each chunk of the body, once it was handed to the server."""


class ResultFile(Response):
    """Response to a GET or HEAD of a result file, created by `open`.

    Bodies up to `SMALL` are in memory, if there is room. Others are read while they are sent, from
    the file that was opened and checked, whatever happens to its name in the meantime.
    """

    @classmethod
    async def open(
        cls, folder: Folder, relative: str, request: Request, count: CountBytes = lambda _: None
    ) -> ResultFile:
        """Open a file and return the response; raises as `Folder.open` does.

        Also raises ResultsUnavailable if there is no memory for one more download.
        """
        # One call in a thread for all disk access, because most files are small Zarr chunks.
        return await in_thread(cls._open, folder, relative, request, count)

    @classmethod
    def _open(
        cls, folder: Folder, relative: str, request: Request, count: CountBytes
    ) -> ResultFile:
        whole = request.method != "HEAD" and _PARTIAL.isdisjoint(request.headers)
        file = folder.open(relative, whole=whole)
        try:
            return cls(file, relative, request, count)
        except BaseException:
            file.close()
            raise

    def __init__(
        self, file: OpenedFile, relative: str, request: Request, count: CountBytes
    ) -> None:
        self._file = file
        self._count = count
        self._share = share_of(request.scope)
        self._share.covers_response = True
        code, headers, parts = respond(file, relative, request)
        if request.method == "HEAD":
            parts = []
        self._parts = parts
        self._whole: list[bytes] = []
        if self._fits(sum(map(len, parts))):
            self._whole = [piece for part in parts for piece in self._read(part)]
            self._parts = []
            file.close()
        super().__init__(b"", code, headers)
        if sum(map(len, self._whole)) <= UNCOUNTED:
            self.body = b"".join(self._whole)
            self._whole = []

    def _fits(self, size: int) -> bool:
        """Return whether to read a body at once; hold what the response needs in either case."""
        share, bounds = self._share, self._share.buffers
        if size <= UNCOUNTED or (size <= SMALL and share.hold(size, bounds.large_chunks)):
            return True
        chunks = 1 + self._file.read_ahead
        if not share.hold(chunks * SMALL_CHUNK_SIZE, bounds.downloads):
            raise ResultsUnavailable("too many slow downloads at the moment; try again")
        self._file.free()
        return False

    def _read(self, part: Part) -> list[bytes]:
        """Return the bytes of a part, the last of them in an object of their own.

        `send` does not wait for the last bytes, and uvloop keeps the whole object that they are in.
        """
        if isinstance(part, bytes):
            return [part]
        if self._file.reads_are_cheap:
            head, tail = part[:-UNCOUNTED], part[-UNCOUNTED:]
            return [self._file.read(each) for each in (head, tail) if each]
        return split_tail(self._file.read(part))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; stop reading when the client disconnects.

        Raises
        ------
        ResultsUnavailable
            If the file became shorter. The server then closes the connection, the only way left to
            show the client that the body is incomplete.
        """
        if not self._parts and not self._whole:
            await super().__call__(scope, receive, send)
            self._count(len(self.body))
            return
        disconnect = asyncio.ensure_future(wait_disconnected(receive))
        try:
            # After a disconnect, servers either ignore what is sent or raise OSError.
            with suppress(OSError):
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
                turns = self._share.buffers.turns
                async with aclosing(self._chunks()) as chunks:
                    while True:
                        # Sent before are all earlier chunks, so `send` does not wait in the block.
                        async with turns:
                            chunk = await anext(chunks, None)
                            if chunk is None:
                                break
                            if disconnect.done():
                                return
                            size = sum(map(len, chunk))
                            # No reference is kept: the frame of a cancelled task can live on in
                            # its exception.
                            await send(_body(chunk.pop(0)))
                        while chunk:
                            await send(_body(chunk.pop(0)))
                        # Servers wait until the client has read what was sent before.
                        await send(_body(b""))
                        self._count(size)
                await send(_body(b"", more=False))
        finally:
            disconnect.cancel()
            self._file.close()

    async def _chunks(self) -> AsyncGenerator[list[bytes]]:
        """Yield the chunks of the body in order, while the next ones are read ahead.

        Who asks for the next chunk has sent the previous one, which is then no longer held.
        """
        if self._whole:
            yield self._whole
        reads: deque[asyncio.Future[list[bytes]]] = deque()
        held: deque[int] = deque()
        try:
            for part in _split(self._parts, partial(self._next_size, held)):
                reads.append(in_thread(self._read, part))
                if len(reads) > self._file.read_ahead:
                    yield await reads.popleft()
                    self._share.release(held.popleft())
            while reads:
                yield await reads.popleft()
                self._share.release(held.popleft())
        finally:
            for read in reads:
                read.cancel()

    def _next_size(self, held: deque[int]) -> int:
        """Return the size of the next chunk; append the bytes held for it."""
        large = self._share.hold(CHUNK_SIZE, self._share.buffers.large_chunks)
        held.append(CHUNK_SIZE if large else 0)
        return CHUNK_SIZE if large else SMALL_CHUNK_SIZE


def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Return the future result of a call that accesses the disk, made in a thread.

    anyio's function for it searches all tasks of the event loop at each call: with 500 downloads,
    that took longer than the reads.
    """
    return asyncio.get_running_loop().run_in_executor(_threads, partial(call, *args, **kwargs))


def _body(content: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def wait_disconnected(receive: Receive) -> None:
    """Return when the client of a request disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _split(parts: Sequence[Part], next_size: Callable[[], int]) -> Iterator[Part]:
    """Split parts into parts of at most the sizes that `next_size` returns."""
    for part in parts:
        start = 0
        while start < len(part):
            stop = start + next_size()
            yield part[start:stop]
            start = stop
