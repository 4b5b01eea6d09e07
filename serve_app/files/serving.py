"""Result files over HTTP: ranges, conditions and streaming (RFC 9110)."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from secrets import token_hex
from typing import Protocol
from urllib.parse import quote

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.results.media_types import media_type
from serve_app.files.paths import ForbiddenPath, InvalidPath, ResultsUnavailable
from serve_app.files.preconditions import Validators, failed_precondition, range_applies
from serve_app.files.ranges import requested_ranges

__all__ = ["Folder", "ForbiddenPath", "InvalidPath", "ResultFile", "Results", "ResultsUnavailable"]

CHUNK_SIZE = 4 << 20
"""Bytes read at a time: 64 KiB reaches 79 MB/s through Serve, 4 MiB 1.1 GB/s, 16 MiB less."""
SMALL = CHUNK_SIZE
"""Bytes up to which a body is read where the file is opened and sent as one message: a map of
0.25 degrees, which is what a Zarr chunk holds, is just below."""

_INLINE = {"image/png"}

_PARTIAL = {
    *("range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"),
}
"""Headers with which less than the whole file may be the answer."""
_NOT_IN_QUOTES = re.compile(r"[^A-Za-z0-9 ._+:=@~-]")

Part = bytes | range
"""A piece of a body: bytes as they stand, or a range of the file."""

Sent = Callable[[int], None]
"""Told how many bytes were handed over."""


class OpenedFile(Protocol):
    """A file that stays as it was when it was opened, or cannot be read any more."""

    @property
    def size(self) -> int:
        """Bytes in it."""

    @property
    def validators(self) -> Validators:
        """What tells this state from another."""

    @property
    def read_ahead(self) -> int:
        """Pieces to read while one is sent."""

    def read(self, part: range) -> bytes:
        """Read one part whole; ResultsUnavailable if it is not there any more."""

    def close(self) -> None:
        """Let it go; a thread that still reads is not harmed."""


class Folder(Protocol):
    """An execution's results, in `serve_app.files.disk` or `serve_app.files.blob`."""

    def open(self, relative: str, *, whole: bool) -> OpenedFile:
        """Open what a client's path names.

        Parameters
        ----------
        relative : str
            Path below it as the client sent it, percent-decoded once.
        whole : bool
            Whether all of it is going to be read.

        Raises
        ------
        ForbiddenPath
            If the path leads out of the folder.
        InvalidPath
            If it can name no file.
        ResultsNotFound
            If nothing is there, or what is no file.
        ResultsUnavailable
            If it cannot be read now.
        """


Results = Callable[[str, str], Folder]
"""Gives the folder of a workflow's execution."""


class ResultFile(Response):
    """The answer to a GET or HEAD for a result file, made by `open`.

    Bodies up to `SMALL` are in memory already. Longer ones are read while they are sent, from
    what was opened and checked, so whatever happens to the name meanwhile.
    """

    @classmethod
    async def open(
        cls, folder: Folder, relative: str, request: Request, sent: Sent = lambda _: None
    ) -> ResultFile:
        """Open a file and decide what to answer; raises what `Folder.open` raises.

        Parameters
        ----------
        folder : Folder
            The execution's results.
        relative : str
            Path below it as the client sent it.
        request : Request
            Its method, range and conditions decide the answer.
        sent : callable
            Told how many bytes of the body were handed over, piece by piece.
        """
        # One turn in a thread for all that touches the disk: most files are small Zarr chunks.
        return await anyio.to_thread.run_sync(cls._open, folder, relative, request, sent)

    @classmethod
    def _open(cls, folder: Folder, relative: str, request: Request, sent: Sent) -> ResultFile:
        whole = request.method != "HEAD" and _PARTIAL.isdisjoint(request.headers)
        file = folder.open(relative, whole=whole)
        try:
            return cls(file, relative, request, sent)
        except BaseException:
            file.close()
            raise

    def __init__(
        self, file: OpenedFile, relative: str, request: Request, sent: Sent = lambda _: None
    ) -> None:
        self._file = file
        self._sent = sent
        code, headers, parts = _answer(file, relative, request)
        body = b""
        self._parts: list[Part] = []
        if request.method != "HEAD":
            if sum(map(len, parts)) <= SMALL:
                body = b"".join(self._read(part) for part in parts)
            else:
                self._parts = parts
        if not self._parts:
            file.close()
        super().__init__(body, code, headers)

    def _read(self, part: Part) -> bytes:
        return part if isinstance(part, bytes) else self._file.read(part)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; stop reading when the client is gone.

        Raises
        ------
        ResultsUnavailable
            If the file became shorter. The server then breaks the connection, which is the only
            way left to tell the client that the body is not whole.
        """
        if not self._parts:
            await super().__call__(scope, receive, send)
            self._sent(len(self.body))
            return
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            # Servers either ignore what is sent to a client that is gone or raise OSError.
            with suppress(OSError):
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
                async with aclosing(self._bodies()) as bodies:
                    async for body in bodies:
                        if gone.done():
                            return
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                        self._sent(len(body))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            self._file.close()

    async def _bodies(self) -> AsyncGenerator[bytes]:
        """Read the pieces of the body in order; those ahead are read meanwhile."""
        begun: deque[asyncio.Future[bytes]] = deque()
        try:
            for chunk in _chunks(self._parts):
                begun.append(asyncio.ensure_future(anyio.to_thread.run_sync(self._read, chunk)))
                if len(begun) > self._file.read_ahead:
                    yield await begun.popleft()
            while begun:
                yield await begun.popleft()
        finally:
            for left in begun:
                left.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _chunks(parts: Sequence[Part]) -> Iterator[Part]:
    """Cut parts into pieces of at most `CHUNK_SIZE`."""
    for part in parts:
        for start in range(0, len(part), CHUNK_SIZE):
            yield part[start : start + CHUNK_SIZE]


def _answer(
    file: OpenedFile, relative: str, request: Request
) -> tuple[int, dict[str, str], list[Part]]:
    """Decide on status code, headers and the pieces of the body that a GET gets."""
    size, validators = file.size, file.validators
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "etag": validators.etag,
        "last-modified": validators.last_modified,
        "x-content-type-options": "nosniff",
    }
    failed = failed_precondition(request.headers, validators)
    if failed == 304:
        return 304, headers, []
    if failed == 412:
        return _problem(412, "the file is not the one that the request is meant for", headers)
    ranges = _ranges(request, validators, size)
    if ranges == []:
        headers["content-range"] = f"bytes */{size}"
        return _problem(416, f"the file has {size} bytes, none of them in these ranges", headers)

    name = relative.rpartition("/")[2]
    content_type = media_type(name)
    headers["content-type"] = content_type
    headers["content-disposition"] = _disposition(name, inline=content_type in _INLINE)
    code = 206
    parts: list[Part]
    if ranges is None:
        code = 200
        parts = [range(size)]
    elif len(ranges) == 1:
        headers["content-range"] = _content_range(ranges[0], size)
        parts = [ranges[0]]
    else:
        boundary = token_hex(16)
        headers["content-type"] = f"multipart/byteranges; boundary={boundary}"
        parts = _multipart(ranges, size, content_type, boundary)
    headers["content-length"] = str(sum(map(len, parts)))
    return code, headers, parts


def _problem(
    code: int, detail: str, headers: dict[str, str]
) -> tuple[int, dict[str, str], list[Part]]:
    """Answer in the shape of all our errors."""
    body = json.dumps({"detail": detail}).encode()
    length = {"content-type": "application/json", "content-length": str(len(body))}
    return code, headers | length, [body]


def _ranges(request: Request, validators: Validators, size: int) -> list[range] | None:
    headers = request.headers.getlist("range")
    if request.method != "GET" or len(headers) != 1:
        return None
    if not range_applies(request.headers, validators):
        return None
    return requested_ranges(headers[0], size)


def _content_range(part: range, size: int) -> str:
    return f"bytes {part.start}-{part.stop - 1}/{size}"


def _multipart(ranges: Sequence[range], size: int, content_type: str, boundary: str) -> list[Part]:
    parts: list[Part] = []
    for position, part in enumerate(ranges):
        delimiter = f"--{boundary}" if position == 0 else f"\r\n--{boundary}"
        content_range = _content_range(part, size)
        head = f"{delimiter}\r\nContent-Type: {content_type}\r\nContent-Range: {content_range}"
        parts += [f"{head}\r\n\r\n".encode(), part]
    return [*parts, f"\r\n--{boundary}--\r\n".encode()]


def _disposition(name: str, *, inline: bool) -> str:
    kind = "inline" if inline else "attachment"
    plain = _NOT_IN_QUOTES.sub("_", name)
    encoded = "" if plain == name else f"; filename*=UTF-8''{quote(os.fsencode(name), safe='')}"
    return f'{kind}; filename="{plain}"{encoded}'
