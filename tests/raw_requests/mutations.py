"""Valid requests as bytes, and mutations of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

from tests.integration.serving import WORKFLOW

ODD = (
    *(
        b"\0",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"%",
        b"%00",
        b"%2f",
        b"%ff",
        b"..%2f",
    ),
    *(
        b"../",
        b"//",
        b"?",
        b"#",
        b"&",
        b"=",
        b":",
        b";",
        b"\xff\xfe",
        b"\xc3\x28",
        "\u202e".encode(),
    ),
    *(b"{", b"}", b"[" * 2000, b'"', b"NaN", b"1e999", b"-1", b"9" * 400, b"true", b"null"),
)
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT")
HEADERS = (
    *(b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 99999999999999999999"),
    *(b"Content-Length: 7", b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity, chunked"),
    *(b"Host: evil.example", b"Host:", b"Origin: http://evil.example", b"Origin: null"),
    *(b"Content-Type: text/plain", b"Content-Encoding: gzip", b"Expect: 100-continue"),
    *(b"Range: bytes=0-0,2-1,-5", b"Range: bytes=-0", b"If-None-Match: *", b"If-Range: x"),
    *(b"Idempotency-Key: " + b"k" * 5000, b"X: " + b"y" * 20_000, b"Upgrade: websocket"),
    *(b"Connection: upgrade", b"Connection: close", b"Accept: application/xml", b"no colon"),
    *(b"Authorization: Bearer \xff", b"Accept-Encoding: gzip;q=x", b'Forwarded: for="', b": empty"),
)


def valid_requests(execution_id: str, prefix: str = "") -> list[bytes]:
    """Return a valid request for every route, about one execution that exists.

    Parameters
    ----------
    prefix : str
        Of all paths of the application.
    """
    root = f"/v1/infer/{WORKFLOW}"
    one = f"{root}/{execution_id}"
    body = {"parameters": {"n_steps": 1, "n_samples": 1, "variables": ["t2m"]}}
    gets = [
        *("/liveness", "/readiness", "/openapi.json", "/v1/infer/workflows"),
        *(f"/v1/infer/workflows/{WORKFLOW}/schema", f"{root}?limit=2&status=completed"),
        *(f"{one}/status", f"{one}/status?wait=0.1", f"{one}/results"),
        *(f"{one}/results/results.zarr/zarr.json", f"{one}/results/item.json"),
        f"{one}/results/results.zarr/t2m/c/0/0/0/0",
    ]
    requests = [_request("GET", prefix + path) for path in gets]
    requests += [
        _request("GET", f"{prefix}{gets[-1]}", "Range: bytes=0-15"),
        _request("POST", f"{prefix}{root}", body=json.dumps(body).encode()),
        # Refused once it is valid: the execution has completed.
        _request("POST", f"{prefix}{one}/retry"),
        _request("DELETE", f"{prefix}{one}"),
        _request("OPTIONS", f"{prefix}{root}", "Origin: http://localhost"),
    ]
    return requests


def _request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def mutated(valid: list[bytes], seed: int) -> Iterator[bytes]:
    """Yield mutated requests without end; the same seed yields the same ones."""
    rng = random.Random(seed)  # noqa: S311 - tests are to be repeatable
    while True:
        request = rng.choice(valid)
        for _ in range(rng.randint(1, 3)):
            request = rng.choice(_MUTATIONS)(rng, request)
        yield request


def _replace_bytes(rng: random.Random, request: bytes) -> bytes:
    changed = bytearray(request)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _insert(rng: random.Random, request: bytes) -> bytes:
    at = rng.randrange(len(request))
    return request[:at] + rng.choice(ODD) + request[at:]


def _insert_in_path(rng: random.Random, request: bytes) -> bytes:
    end = max(request.find(b" HTTP"), 1)
    at = rng.randrange(end)
    return request[:at] + rng.choice(ODD) + request[at:]


def _remove(rng: random.Random, request: bytes) -> bytes:
    at = rng.randrange(len(request))
    return request[:at] + request[at + rng.randint(1, 20) :] or b"\r\n"


def _repeat(rng: random.Random, request: bytes) -> bytes:
    at = rng.randrange(len(request))
    end = at + rng.randint(1, 60)
    return request[:end] + request[at:end] * rng.randint(1, 30) + request[end:]


def _truncate(rng: random.Random, request: bytes) -> bytes:
    return request[: rng.randrange(1, len(request) + 1)]


def _other_method(rng: random.Random, request: bytes) -> bytes:
    return rng.choice(METHODS) + b" " + request.partition(b" ")[2]


def _add_header(rng: random.Random, request: bytes) -> bytes:
    first, separator, rest = request.partition(b"\r\n")
    return first + separator + rng.choice(HEADERS) + b"\r\n" + rest


def _other_value(rng: random.Random, request: bytes) -> bytes:
    head, separator, body = request.partition(b"\r\n\r\n")
    if not body:
        return _add_header(rng, request)
    body = rng.choice([b"1", b'"t2m"', b"[1]", b"zarr"]).join(body.split(rng.choice([b"1", b"["])))
    head = head.replace(b"Content-Length: ", b"Content-Length: %d\r\nX: " % len(body))
    return head + separator + body


_MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _replace_bytes,
    _insert,
    _insert_in_path,
    _remove,
    _repeat,
    _truncate,
    _other_method,
    _add_header,
    _other_value,
)
