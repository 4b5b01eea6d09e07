"""Responses with whole files, and streaming of their bodies."""

import asyncio
import gc
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from serve_app.files.buffers import UNCOUNTED
from serve_app.files.disk import DiskFolder
from serve_app.files.paths import ResultsUnavailable
from serve_app.files.serving import CHUNK_SIZE, ResultFile
from tests.serve_app.files.conftest import CONTENT, LARGE, Write


@pytest.mark.parametrize(("name", "content"), [("chunk", CONTENT), ("large.nc", LARGE)])
def test_a_whole_file(client: TestClient, name: str, content: bytes) -> None:
    response = client.get(f"/{name}")
    assert response.status_code == 200
    assert response.content == content
    assert response.headers["content-length"] == str(len(content))
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "private, no-cache"
    assert "content-range" not in response.headers


def test_an_empty_file(client: TestClient) -> None:
    response = client.get("/empty")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == "0"
    response = client.get("/empty", headers={"range": "bytes=0-"})
    assert (response.status_code, response.headers["content-range"]) == (416, "bytes */0")


@pytest.mark.parametrize("name", ["chunk", "large.nc", "empty"])
@pytest.mark.parametrize("header", [{}, {"range": "bytes=0-1"}, {"range": "bytes=9999999999-"}])
def test_head(client: TestClient, name: str, header: dict[str, str]) -> None:
    whole = client.get(f"/{name}")
    head = client.head(f"/{name}", headers=header)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == whole.headers


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("results.nc", "application/netcdf"),
        ("zarr.json", "application/json"),
        ("map.PNG", "image/png"),
        ("results.nc.sha256", "text/plain; charset=utf-8"),
        ("0", "application/octet-stream"),
        ("page.html", "application/octet-stream"),
    ],
)
def test_media_types(client: TestClient, write: Write, name: str, media_type: str) -> None:
    write(name, b"x")
    assert client.get(f"/{name}").headers["content-type"] == media_type


@pytest.mark.parametrize(
    ("name", "disposition"),
    [
        ("results.nc", 'attachment; filename="results.nc"'),
        ("map.png", 'inline; filename="map.png"'),
        ("wf:exec_1", 'attachment; filename="wf:exec_1"'),
        ('a"; x="b', "attachment; filename=\"a__ x=_b\"; filename*=UTF-8''a%22%3B%20x%3D%22b"),
        ("größe.nc", "attachment; filename=\"gr__e.nc\"; filename*=UTF-8''gr%C3%B6%C3%9Fe.nc"),
    ],
)
def test_file_names(client: TestClient, write: Write, name: str, disposition: str) -> None:
    write(name, b"x")
    assert client.get(f"/{name}").headers["content-disposition"] == disposition


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("missing", 404),
        ("", 404),
        ("%2e%2e/secret", 403),
        ("%2e%2e%2fsecret", 403),
        ("%252e%252e%252fsecret", 404),
        ("%2fetc%2fpasswd", 403),
        ("%5c..%5csecret", 403),
        ("chunk%00", 400),
        ("chunk%0d", 400),
        ("a" * 4097, 400),
        ("%ff%fe", 404),
        ("chunk/0", 404),
    ],
)
async def test_refused_paths(client: TestClient, root: Path, path: str, status: int) -> None:
    # TestClient decodes paths twice, httpx's own transport once, as servers do.
    transport = httpx.ASGITransport(app=client.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get(f"/{path}")
    assert response.status_code == status
    assert str(root) not in response.text


def get(path: str = "/") -> Request:
    return Request({"type": "http", "method": "GET", "path": path, "headers": []})


async def connected() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_small_body_is_one_message(root: Path) -> None:
    response = await ResultFile.open(DiskFolder(root), "chunk", get())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await response(get().scope, connected, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["body"] == CONTENT and not sent[1].get("more_body")


async def test_a_large_body_is_sent_in_chunks(root: Path) -> None:
    response = await ResultFile.open(DiskFolder(root), "large.nc", get())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await response(get().scope, connected, send)
    # After the empty message, `send` has handed over the previous ones, but for the last bytes.
    chunk = [CHUNK_SIZE - UNCOUNTED, UNCOUNTED, 0]
    assert [len(message["body"]) for message in sent[1:]] == [*chunk, *chunk, 12345, 0, 0]
    assert [message["more_body"] for message in sent[1:]] == [True] * 8 + [False]


async def test_a_file_that_is_replaced_is_sent_as_it_was_opened(tmp_path: Path) -> None:
    file = tmp_path / "results.nc"
    file.write_bytes(LARGE)
    response = await ResultFile.open(DiskFolder(tmp_path), "results.nc", get())
    (tmp_path / "new").write_bytes(b"another")
    (tmp_path / "new").rename(file)
    sent = bytearray()

    async def send(message: Any) -> None:
        sent.extend(message.get("body", b""))

    await response(get().scope, connected, send)
    assert sent == LARGE


async def test_bytes_appended_while_sending_are_not_sent(tmp_path: Path) -> None:
    file = tmp_path / "results.nc"
    file.write_bytes(LARGE)
    response = await ResultFile.open(DiskFolder(tmp_path), "results.nc", get())
    with file.open("ab") as growing:
        growing.write(b"more")
    sent = bytearray()

    async def send(message: Any) -> None:
        sent.extend(message.get("body", b""))

    await response(get().scope, connected, send)
    assert sent == LARGE


async def test_a_file_that_becomes_shorter_aborts_the_response(tmp_path: Path) -> None:
    file = tmp_path / "results.nc"
    file.write_bytes(LARGE)
    response = await ResultFile.open(DiskFolder(tmp_path), "results.nc", get())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        os.truncate(file, CHUNK_SIZE + 1)

    assert len(descriptors_of(tmp_path)) == 1
    with pytest.raises(ResultsUnavailable, match="became shorter"):
        await asyncio.wait_for(response(get().scope, connected, send), 5)
    assert sent[-1].get("more_body", True), "the body must not look complete"
    assert descriptors_of(tmp_path) == []


async def test_a_disconnect_stops_reading(root: Path) -> None:
    response = await ResultFile.open(DiskFolder(root), "large.nc", get())
    disconnected = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> Any:
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            disconnected.set()
            await asyncio.sleep(0)

    assert len(descriptors_of(root)) == 1
    await response(get().scope, receive, send)
    assert sum(len(message.get("body", b"")) for message in sent) == CHUNK_SIZE
    assert descriptors_of(root) == []


async def test_a_failing_send_stops_reading(root: Path) -> None:
    response = await ResultFile.open(DiskFolder(root), "large.nc", get())
    assert len(descriptors_of(root)) == 1

    async def send(message: Any) -> None:
        raise OSError("the client is gone")

    await response(get().scope, connected, send)
    assert descriptors_of(root) == []


async def test_a_cancelled_response_closes_its_file(root: Path) -> None:
    response = await ResultFile.open(DiskFolder(root), "large.nc", get())
    assert len(descriptors_of(root)) == 1
    started = asyncio.Event()

    async def send(message: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(response(get().scope, connected, send))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert descriptors_of(root) == []


def test_responses_leave_no_descriptor_open(disk_client: TestClient, root: Path) -> None:
    for name in ["chunk", "large.nc", "empty", "missing"]:
        for headers in [
            {},
            {"range": "bytes=0-1,5-6"},
            {"if-match": '"x"'},
            {"if-none-match": "*"},
        ]:
            disk_client.get(f"/{name}", headers=headers)
            disk_client.head(f"/{name}", headers=headers)
    assert descriptors_of(root) == []


async def test_the_cost_does_not_depend_on_the_offset(tmp_path: Path) -> None:
    # A sparse file of 1 TiB: reading up to the range would take minutes.
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek((1 << 40) - 4)
        file.write(b"last")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        response = await ResultFile.open(DiskFolder(tmp_path), "sparse", Request(scope, receive))
        await response(scope, receive, send)

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        start = time.perf_counter()
        response = await client.get("/", headers={"range": "bytes=-4"})
        assert response.content == b"last"
        assert response.headers["content-range"] == f"bytes {2**40 - 4}-{2**40 - 1}/{2**40}"
        assert time.perf_counter() - start < 1


def descriptors_of(root: Path) -> list[str]:
    """Return the files of a folder that this process has open."""
    gc.collect()
    paths = []
    for descriptor in os.listdir("/dev/fd"):
        with suppress(FileNotFoundError):
            paths.append(os.readlink(f"/dev/fd/{descriptor}"))
    return [path for path in paths if path.startswith(f"{root}/")]
