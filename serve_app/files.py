"""Result files over HTTP: ranges, conditions and streaming (RFC 9110)."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.paths import (
    ForbiddenPath,
    InvalidPath,
    ResultsUnavailable,
    answering_for,
    open_below,
    resolve,
)
from serve_app.preconditions import Validators, failed_precondition, range_applies
from serve_app.ranges import requested_ranges

__all__ = ["ForbiddenPath", "InvalidPath", "ResultFile", "ResultsUnavailable", "resolve"]

CHUNK_SIZE = 4 << 20
"""Bytes read at a time: 64 KiB reaches 79 MB/s through Serve, 4 MiB 1.1 GB/s, 16 MiB less."""
SMALL = CHUNK_SIZE
"""Bytes up to which a body is read where the file is opened and sent as one message: a map of
0.25 degrees, which is what a Zarr chunk holds, is just below."""

MEDIA_TYPES = {
    ".json": "application/json",
    ".nc": "application/netcdf",
    ".png": "image/png",
    ".sha256": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".zip": "application/zip",
}
_INLINE = {".png"}

_NOT_IN_QUOTES = re.compile(r"[^A-Za-z0-9 ._+:=@~-]")

Part = bytes | range
"""A piece of a body: bytes as they stand, or a range of the file."""


class ResultFile(Response):
    """The answer to a GET or HEAD for a result file, made by `open`.

    Bodies up to `SMALL` are in memory already. Longer ones are read while they are sent, from
    the descriptor that was opened and checked, so whatever happens to the name meanwhile.
    """

    @classmethod
    async def open(cls, root: Path, relative: str, request: Request) -> ResultFile:
        """Open a file and decide what to answer; raises what `resolve` raises.

        Parameters
        ----------
        root : Path
            Folder of the execution's results.
        relative : str
            Path below it as the client sent it.
        request : Request
            Its method, range and conditions decide the answer.
        """
        # One turn in a thread for all that touches the disk: most files are small Zarr chunks.
        return await anyio.to_thread.run_sync(cls._open, root, relative, request)

    @classmethod
    def _open(cls, root: Path, relative: str, request: Request) -> ResultFile:
        file = open_below(root, relative)
        try:
            return cls(file, relative, request)
        except BaseException:
            file.close()
            raise

    def __init__(self, file: FileIO, relative: str, request: Request) -> None:
        self._file = file
        self._relative = relative
        code, headers, parts = _answer(os.fstat(file.fileno()), relative, request)
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
        """Read one part whole.

        ``pread`` goes straight to the offset and moves no shared position, so closing the file
        on a thread that a cancelled request left behind harms nobody.
        """
        if isinstance(part, bytes):
            return part
        with answering_for(self._relative):
            chunk = os.pread(self._file.fileno(), len(part), part.start)
            while len(chunk) < len(part):  # one call gives less than asked for only rarely
                more = os.pread(
                    self._file.fileno(), len(part) - len(chunk), part.start + len(chunk)
                )
                if not more:
                    raise ResultsUnavailable(f"{self._relative!r} became shorter while it was read")
                chunk += more
        return chunk

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
                for chunk in _chunks(self._parts):
                    body = (
                        chunk
                        if isinstance(chunk, bytes)
                        else await anyio.to_thread.run_sync(self._read, chunk)
                    )
                    if gone.done():
                        return
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            self._file.close()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _chunks(parts: Sequence[Part]) -> Iterator[Part]:
    """Cut parts into pieces of at most `CHUNK_SIZE`."""
    for part in parts:
        for start in range(0, len(part), CHUNK_SIZE):
            yield part[start : start + CHUNK_SIZE]


def _answer(
    status: os.stat_result, relative: str, request: Request
) -> tuple[int, dict[str, str], list[Part]]:
    """Decide on status code, headers and the pieces of the body that a GET gets."""
    size = status.st_size
    validators = Validators.of(status)
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
    suffix = os.path.splitext(name)[1].lower()
    media_type = MEDIA_TYPES.get(suffix, "application/octet-stream")
    headers["content-type"] = media_type
    headers["content-disposition"] = _disposition(name, inline=suffix in _INLINE)
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
        parts = _multipart(ranges, size, media_type, boundary)
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


def _multipart(ranges: Sequence[range], size: int, media_type: str, boundary: str) -> list[Part]:
    parts: list[Part] = []
    for position, part in enumerate(ranges):
        delimiter = f"--{boundary}" if position == 0 else f"\r\n--{boundary}"
        content_range = _content_range(part, size)
        head = f"{delimiter}\r\nContent-Type: {media_type}\r\nContent-Range: {content_range}"
        parts += [f"{head}\r\n\r\n".encode(), part]
    return [*parts, f"\r\n--{boundary}--\r\n".encode()]


def _disposition(name: str, *, inline: bool) -> str:
    kind = "inline" if inline else "attachment"
    plain = _NOT_IN_QUOTES.sub("_", name)
    encoded = "" if plain == name else f"; filename*=UTF-8''{quote(os.fsencode(name), safe='')}"
    return f'{kind}; filename="{plain}"{encoded}'
