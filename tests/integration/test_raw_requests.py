"""No bytes that a client may send are answered with an error of the server."""

from __future__ import annotations

import itertools

import pytest

from tests.integration.serving import Server
from tests.raw_requests.answers import judge, send_all
from tests.raw_requests.mutations import mutated, valid_requests

COUNT = 300
"""``python -m tests.raw_requests PORT 4000`` sends more."""


@pytest.fixture(scope="module")
def execution_id(shared_server: Server) -> str:
    name = shared_server.submit(n_steps=1, n_samples=1, variables=["t2m"], output_format="zarr")
    shared_server.completed(name)
    return name


@pytest.mark.ray
def test_mutated_requests_are_answered(
    shared_server: Server, http_port: int, execution_id: str
) -> None:
    requests = itertools.islice(mutated(valid_requests(execution_id), seed=1), COUNT)
    verdict = send_all(http_port, requests)
    assert verdict.wrong == []
    assert verdict.statuses["200"] > COUNT / 30, verdict.statuses


@pytest.mark.ray
def test_valid_requests_are_answered(
    shared_server: Server, http_port: int, execution_id: str
) -> None:
    verdict = send_all(http_port, valid_requests(execution_id))
    assert verdict.wrong == []
    assert verdict.statuses["404"] <= 2, verdict.statuses


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
