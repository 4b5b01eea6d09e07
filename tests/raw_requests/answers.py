"""Send bytes to a server and judge its answer."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

LIMIT_S = 20.0
"""The server gives up a request that does not end after 10 s."""


@dataclass
class Verdict:
    """What was answered to many requests."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[bytes, str]] = field(default_factory=list)
    """Requests whose answers are not allowed, and why."""


def send_all(port: int, requests: Iterable[bytes]) -> Verdict:
    """Send requests one after another, each over its own connection, and judge the answers."""
    verdict = Verdict()
    for request in requests:
        try:
            answer = exchange(port, request)
        except TimeoutError:
            verdict.wrong.append((request, f"no answer within {LIMIT_S:g} s"))
            continue
        status, problem = judge(request, answer)
        verdict.statuses[status] += 1
        if problem is not None:
            verdict.wrong.append((request, problem))
    return verdict


def exchange(port: int, request: bytes) -> bytes:
    """Send bytes, close our side, and return all that is answered."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(1 << 16):
                received += data
        except (ConnectionResetError, BrokenPipeError):
            pass  # what was answered before counts
    return received


def judge(request: bytes, answer: bytes) -> tuple[str, str | None]:
    """Return the status of an answer, and what is wrong with it."""
    if not answer:
        return "closed", None  # nothing was asked
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
    if not headers.get("content-type", "").startswith("application/json"):
        return status, f"{first} with {headers.get('content-type')}: {body[:200]!r}"
    return status, None if _is_json(body, headers) else f"{first}, not JSON: {body[:200]!r}"


def _is_from_the_parser(status: str, body: bytes) -> bool:
    # HAProxy's parser has these pages compiled in; a configuration cannot replace them.
    return status in ("400", "408") and body.startswith(b"<html><body><h1>")


def _is_json(body: bytes, headers: dict[str, str]) -> bool:
    if headers.get("transfer-encoding") == "chunked":
        body = body.partition(b"\r\n")[2].rpartition(b"\r\n0\r\n")[0]
    try:
        json.loads(body)
    except ValueError:
        return False
    return True
