"""Status, headers and parts of the body of a response with a result file (RFC 9110)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from secrets import token_hex
from urllib.parse import quote

from starlette.requests import Request

from deployments.results.media_types import media_type
from serve_app.files.preconditions import Validators, failed_precondition, range_applies
from serve_app.files.protocols import OpenedFile
from serve_app.files.ranges import requested_ranges

_INLINE = {"image/png"}
_NOT_IN_QUOTES = re.compile(r"[^A-Za-z0-9 ._+:=@~-]")

Part = bytes | range
"""A part of a body: bytes to send as they are, or a range of the file."""


def respond(
    file: OpenedFile, relative: str, request: Request
) -> tuple[int, dict[str, str], list[Part]]:
    """Return the status code, the headers, and the parts of the body of a GET."""
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
        return _error(412, "the file is not in the state that the request requires", headers)
    ranges = _ranges(request, validators, size)
    if ranges == []:
        headers["content-range"] = f"bytes */{size}"
        return _error(416, f"the file has {size} bytes, none of them in these ranges", headers)

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


def _error(
    code: int, detail: str, headers: dict[str, str]
) -> tuple[int, dict[str, str], list[Part]]:
    """Return a response with the body of all errors of the HTTP API."""
    body = json.dumps({"detail": detail}).encode()
    length = {"content-type": "application/json", "content-length": str(len(body))}
    return code, headers | length, [body]


def _ranges(request: Request, validators: Validators, size: int) -> list[range] | None:
    headers = request.headers.getlist("range")
    is_get = request.method == "GET"
    if not is_get or len(headers) != 1 or not range_applies(request.headers, validators):
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
