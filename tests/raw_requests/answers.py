"""Send bytes to a server and judge its answer."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

CONNECTIONS = 32
LIMIT_S = 30.0
"""The server gives up a request that does not end after 10 s, and a connection after another 10."""


@dataclass
class Verdict:
    """What was answered to many requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[bytes, str]] = field(default_factory=list)
    """Requests whose answers are not allowed, and why."""


def send_all(port: int, requests: Iterable[bytes]) -> Verdict:
    """Send requests, each over its own connection, and judge the answers."""
    verdict = Verdict()

    def send(request: bytes) -> tuple[bytes, str, str | None]:
        try:
            return request, *judge(exchange(port, request))
        except TimeoutError:
            return request, "none", f"no answer within {LIMIT_S:g} s"

    # Many at once, since the server waits for what incomplete ones still lack.
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for request, status, problem in threads.map(send, requests):
            verdict.statuses[status] += 1
            if problem is not None:
                verdict.wrong.append((request, problem))
    return verdict


def exchange(port: int, request: bytes) -> bytes:
    """Send bytes, and return the first answer, or all until the server closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        try:
            connection.sendall(request)
            if not _is_complete(request):
                connection.shutdown(socket.SHUT_WR)
            while (end := _end_of_answer(request, received)) is None:
                if not (data := connection.recv(1 << 16)):
                    break
                received += data
        except (ConnectionResetError, BrokenPipeError):
            end = _end_of_answer(request, received)  # what was answered before counts
    return received[:end]


def _is_complete(request: bytes) -> bool:
    """Return whether a server that has received a request has no reason to wait for more."""
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: *(\d{1,9})(?!\d)", head, re.IGNORECASE)
    is_short = length is not None and len(body) < int(length[1])
    return bool(end) and not is_short and b"chunked" not in head.lower()


def _end_of_answer(request: bytes, received: bytes) -> int | None:
    """Return where the first final answer ends; None if that is not known yet."""
    start = 0
    while match := re.match(rb"HTTP/1\.\d (\d+).*?\r\n\r\n", received[start:], re.DOTALL):
        start += match.end()
        if match[1].startswith(b"1"):
            continue
        length = re.search(rb"\r\ncontent-length: *(\d+)\r\n", match[0], re.IGNORECASE)
        if match[1] in (b"204", b"304") or request.lstrip().startswith(b"HEAD "):
            return start
        if length is None or len(received) < start + int(length[1]):
            return None
        return start + int(length[1])
    return None


def judge(answer: bytes) -> tuple[str, str | None]:
    """Return the status of an answer, and what is wrong with it."""
    while answer.startswith(b"HTTP/1.1 100"):
        answer = answer.partition(b"\r\n\r\n")[2]
    if not answer:
        return "closed", None  # nothing was asked, or not all of it
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1."):
        return "none", f"not HTTP: {answer[:60]!r}"
    status = first.split()[1]
    headers = {
        name.lower(): value.strip() for name, _, value in (ln.partition(":") for ln in lines)
    }
    if status.startswith("5") and not (status == "503" and "retry-after" in headers):
        return status, f"{first}: {body[:200]!r}"
    if int(status) < 400 or not body:
        return status, None
    if _is_from_the_parser(status, body):
        return f"{status} HTML of HAProxy's parser", None
    if (status, body) == ("400", b"Invalid HTTP request received."):
        return "400 text of uvicorn's parser", None
    if not headers.get("content-type", "").startswith("application/json"):
        return status, f"{first} with {headers.get('content-type')}: {body[:200]!r}"
    return status, None if _is_json(body, headers) else f"{first}, not JSON: {body[:200]!r}"


def _is_from_the_parser(status: str, body: bytes) -> bool:
    # HAProxy's parser has these pages compiled in; a configuration cannot replace them.
    return status in ("400", "408", "422") and body.startswith(b"<html><body><h1>")


def _is_json(body: bytes, headers: dict[str, str]) -> bool:
    if headers.get("transfer-encoding") == "chunked":
        body = body.partition(b"\r\n")[2].rpartition(b"\r\n0\r\n")[0]
    try:
        json.loads(body)
    except ValueError:
        return False
    return True
