"""No bytes that a client may send are answered with an error of the server."""

from __future__ import annotations

import itertools
from urllib.parse import urlsplit

import pytest

from tests.integration.serving import Server
from tests.raw_requests.answers import judge, send_all
from tests.raw_requests.mutations import mutated, valid_requests

COUNT = 300
"""``python -m tests.raw_requests PORT 4000`` sends more."""


@pytest.fixture(scope="module")
def valid(shared_server: Server) -> list[bytes]:
    name = shared_server.submit(n_steps=1, n_samples=1, variables=["t2m"], output_format="zarr")
    shared_server.completed(name)
    return valid_requests(name, urlsplit(shared_server.base_url).path.rstrip("/"))


@pytest.mark.ray
def test_mutated_requests_are_answered(http_port: int, valid: list[bytes]) -> None:
    requests = itertools.islice(mutated(valid, seed=1), COUNT)
    verdict = send_all(http_port, requests)
    assert verdict.wrong == []
    assert verdict.statuses["200"] > COUNT / 30, verdict.statuses


@pytest.mark.ray
def test_valid_requests_are_answered(http_port: int, valid: list[bytes]) -> None:
    verdict = send_all(http_port, valid)
    assert verdict.wrong == []
    assert "404" not in verdict.statuses, verdict.statuses


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "500"),
        (b"HTTP/1.1 502 Bad Gateway\r\nRetry-After: 5\r\n\r\n", "502"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\n\r\n<p>", "text/html"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\n\r\n{", "not JSON"),
        (b"gibberish", "not HTTP"),
    ],
)
def test_wrong_answers_are_recognized(answer: bytes, wrong: str) -> None:
    _, problem = judge(answer)
    assert problem is not None
    assert wrong in problem
