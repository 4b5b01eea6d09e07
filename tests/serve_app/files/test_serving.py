"""Downloads of results: those on disk and those in Blob answer alike."""

import asyncio
import email.policy
import gc
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from deployments.azure.blobs import Blobs
from serve_app.files.blob import BlobResults
from serve_app.files.disk import DiskFolder
from serve_app.files.serving import (
    CHUNK_SIZE,
    SMALL,
    Folder,
    ForbiddenPath,
    InvalidPath,
    ResultFile,
    ResultsUnavailable,
)
from tests.deployments.results.backends import options_for
from workflows.errors import ResultsNotFound

CONTENT = random.Random(0).randbytes(1000)
LARGE = random.Random(1).randbytes(2 * CHUNK_SIZE + 12345)
FILES = {"chunk": CONTENT, "large.nc": LARGE, "empty": b""}
MODIFIED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATUS: dict[type[Exception], int] = {
    ForbiddenPath: 403,
    InvalidPath: 400,
    ResultsNotFound: 404,
    ResultsUnavailable: 503,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    os.utime(root / "chunk", (MODIFIED.timestamp() + 0.5,) * 2)
    return root


Write = Callable[[str, bytes], None]


@pytest.fixture(scope="module", params=["disk", "blob"])
def place(request: pytest.FixtureRequest, root: Path) -> tuple[Folder, Write]:
    """A folder with results, and how to write more there."""
    if request.param == "disk":

        def write_file(name: str, content: bytes) -> None:
            (root / name).write_bytes(content)

        return DiskFolder(root), write_file
    azurite = request.getfixturevalue("azurite")
    options = options_for(azurite, azurite.new_container("a/folder"), root)
    blobs = Blobs(options)

    def write(name: str, content: bytes) -> None:
        blobs.put(f"workflow/exec_1/{name}", content, "application/octet-stream")

    for name, content in FILES.items():
        write(name, content)
    return BlobResults(options)("workflow", "exec_1"), write


@pytest.fixture(scope="module")
def write(place: tuple[Folder, Write]) -> Write:
    return place[1]


@pytest.fixture(scope="module")
def client(place: tuple[Folder, Write]) -> Iterator[TestClient]:
    with TestClient(serving(place[0])) as client:
        yield client


@pytest.fixture(scope="module")
def disk_client(root: Path) -> Iterator[TestClient]:
    with TestClient(serving(DiskFolder(root))) as client:
        yield client


def serving(folder: Folder) -> Starlette:
    async def results(request: Request) -> Response:
        return await ResultFile.open(folder, request.path_params["path"], request)

    async def refuse(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), STATUS[type(error)])

    return Starlette(
        routes=[Route("/{path:path}", results, methods=["GET", "HEAD", "POST"])],
        exception_handlers=dict.fromkeys(STATUS, refuse),
    )


# Whole files


@pytest.mark.parametrize(("name", "content"), [("chunk", CONTENT), ("large.nc", LARGE)])
def test_whole(client: TestClient, name: str, content: bytes) -> None:
    answer = client.get(f"/{name}")
    assert answer.status_code == 200
    assert answer.content == content
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "private, no-cache"
    assert "content-range" not in answer.headers


def test_an_empty_file(client: TestClient) -> None:
    answer = client.get("/empty")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "0"
    answer = client.get("/empty", headers={"range": "bytes=0-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */0")


@pytest.mark.parametrize("name", ["chunk", "large.nc", "empty"])
@pytest.mark.parametrize("header", [{}, {"range": "bytes=0-1"}, {"range": "bytes=9999999999-"}])
def test_head(client: TestClient, name: str, header: dict[str, str]) -> None:
    whole = client.get(f"/{name}")
    head = client.head(f"/{name}", headers=header)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == whole.headers


def test_ranges_of_other_methods_are_ignored(client: TestClient) -> None:
    answer = client.post("/chunk", headers={"range": "bytes=0-1"})
    assert (answer.status_code, answer.content) == (200, CONTENT)


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
async def test_refusals(client: TestClient, root: Path, path: str, status: int) -> None:
    # TestClient decodes paths twice; httpx's own transport once, as servers do.
    transport = httpx.ASGITransport(app=client.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as once:
        answer = await once.get(f"/{path}")
    assert answer.status_code == status
    assert str(root) not in answer.text


# Ranges


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=990-", 990, 999),
        ("bytes=-10", 990, 999),
        ("bytes=-5000", 0, 999),
        ("bytes=500-5000", 500, 999),
        ("bytes=0-1,5000-", 0, 1),
        ("bytes=0-10,5-20,21-30", 0, 30),
    ],
)
def test_a_range(client: TestClient, header: str, first: int, last: int) -> None:
    answer = client.get("/chunk", headers={"range": header})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/1000"
    assert answer.headers["content-length"] == str(last - first + 1)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.content == CONTENT[first : last + 1]


def test_a_range_across_chunks(client: TestClient) -> None:
    start = CHUNK_SIZE - 10
    answer = client.get("/large.nc", headers={"range": f"bytes={start}-"})
    assert answer.content == LARGE[start:]
    answer = client.get("/large.nc", headers={"range": f"bytes={start}-{start + SMALL}"})
    assert answer.content == LARGE[start : start + SMALL + 1]


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=-0", f"bytes={'9' * 5000}-,5000-6000"])
def test_no_range_to_satisfy(client: TestClient, header: str) -> None:
    answer = client.get("/chunk", headers={"range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */1000"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert "1000 bytes" in answer.json()["detail"]


@pytest.mark.parametrize("header", ["bytes=-", "bytes=2-1", "items=0-1", "bytes=x", "", "bytes"])
def test_other_headers_are_ignored(client: TestClient, header: str) -> None:
    answer = client.get("/chunk", headers={"range": header})
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_two_range_headers_are_ignored(client: TestClient) -> None:
    headers = [("range", "bytes=0-1"), ("range", "bytes=3-4")]
    assert client.get("/chunk", headers=headers).status_code == 200


@pytest.mark.parametrize(("name", "content"), [("chunk", CONTENT), ("large.nc", LARGE)])
def test_several_ranges(client: TestClient, name: str, content: bytes) -> None:
    size = len(content)
    header = f"bytes={size // 2}-, 0-9, {size}-, 20-29"
    answer = client.get(f"/{name}", headers={"range": header})
    assert answer.status_code == 206
    assert answer.headers["content-length"] == str(len(answer.content))
    assert "content-range" not in answer.headers
    media_type = client.head(f"/{name}").headers["content-type"]
    assert byteranges(answer, media_type) == [
        (size // 2, content[size // 2 :]),
        (0, content[:10]),
        (20, content[20:30]),
    ]


ends = st.integers(0, 1100)
spec = st.one_of(
    st.builds("{}-{}".format, ends, ends),
    ends.map("{}-".format),
    ends.map("-{}".format),
    st.sampled_from(["", "-", "x", " 1-2 ", "--", f"{10**30}-"]),
)


@settings(deadline=None)
@given(
    header=st.lists(spec, max_size=6).map(",".join).map("bytes=".__add__)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126))
)
def test_ranges_like_the_model(client: TestClient, header: str) -> None:
    answer = client.get("/chunk", headers={"range": header})
    meant = model(header, len(CONTENT))
    if meant is None:
        assert (answer.status_code, answer.content) == (200, CONTENT)
    elif not meant:
        assert answer.status_code == 416
    else:
        assert answer.status_code == 206
        if "content-range" in answer.headers:
            first = int(answer.headers["content-range"].split()[1].split("-")[0])
            parts = [(first, answer.content)]
        else:
            parts = byteranges(answer, "application/octet-stream")
            assert len(parts) > 1
        sent = {first + i: byte for first, part in parts for i, byte in enumerate(part)}
        assert sent == {position: CONTENT[position] for position in meant}
        assert sum(len(part) for _, part in parts) == len(meant)


def model(header: str, size: int) -> set[int] | None:
    """Which bytes a Range header means; None if it means nothing. Slow and plain."""
    unit, equals, rest = header.partition("=")
    specs = [spec.strip(" \t") for spec in rest.split(",") if spec.strip(" \t")]
    if unit.lower() != "bytes" or not equals or not specs:
        return None
    meant: set[int] = set()
    for spec in specs:
        first, dash, last = spec.partition("-")
        if not dash or not (first or last) or not set(first + last) <= set("0123456789"):
            return None
        if first and last and int(last) < int(first):
            return None
        if first:
            meant |= {i for i in range(size) if int(first) <= i <= int(last or size)}
        else:
            meant |= {i for i in range(size) if i >= size - int(last)}
    return meant


def byteranges(answer: Any, media_type: str) -> list[tuple[int, bytes]]:
    """Read a multipart answer, by its delimiters and, as a second opinion, as mail."""
    kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    body = answer.content
    preamble, *pieces, epilogue = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    assert (preamble, epilogue) == (b"", b"--\r\n")
    parts = []
    for piece in pieces:
        head, _, content = piece.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n"))
        assert fields["Content-Type"] == media_type
        first, last, size = (
            fields["Content-Range"].removeprefix("bytes ").replace("/", "-").split("-")
        )
        assert int(last) - int(first) + 1 == len(content)
        assert int(size) in {len(CONTENT), len(LARGE)}
        parts.append((int(first), content))
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    mail = BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    assert mail.is_multipart() and not mail.defects
    assert [part["Content-Range"].split()[0] for part in mail.iter_parts()] == ["bytes"] * len(
        parts
    )
    return parts


# Conditions


@pytest.fixture
def validators(client: TestClient) -> tuple[str, str]:
    headers = client.head("/chunk").headers
    return headers["etag"], headers["last-modified"]


def test_validators(client: TestClient, write: Write, validators: tuple[str, str]) -> None:
    etag, last_modified = validators
    assert etag[0] == etag[-1] == '"' and len(etag) > 2
    assert parsedate_to_datetime(last_modified) <= datetime.now(UTC)
    assert client.get("/chunk", headers={"range": "bytes=0-1"}).headers["etag"] == etag

    seen = set()
    for content in (b"one", b"two", b"three"):
        write("other", content)
        assert client.get("/other").content == content
        seen.add(client.head("/other").headers["etag"])
    assert len(seen) == 3


def test_validators_on_disk(disk_client: TestClient, root: Path) -> None:
    last_modified = disk_client.head("/chunk").headers["last-modified"]
    assert parsedate_to_datetime(last_modified) == MODIFIED
    other = root / "other"
    seen = set()
    for content, modified_ns in [(b"one", 0), (b"two", 1), (b"three", 1)]:
        other.write_bytes(content)
        os.utime(other, ns=(modified_ns, modified_ns))
        seen.add(disk_client.head("/other").headers["etag"])
    assert len(seen) == 3


def test_last_modified_is_never_in_the_future(disk_client: TestClient, root: Path) -> None:
    (root / "future").write_bytes(b"x")
    os.utime(root / "future", (time.time() + 10**6,) * 2)
    answer = disk_client.head("/future")
    assert parsedate_to_datetime(answer.headers["last-modified"]) <= datetime.now(UTC)


def date(offset_s: int) -> str:
    """Give what stands for a date so long after the last modification."""
    return f"{{date{offset_s:+}}}"


def dated(value: str, modified: datetime) -> str:
    """Put dates where `date` or one of the two older forms stands."""
    value = value.replace("{date in 1994}", modified.strftime("%A, %d-%b-%y %H:%M:%S GMT"))
    value = value.replace("{date of asctime}", modified.strftime("%a %b %e %H:%M:%S %Y"))
    return re.sub(
        r"\{date([+-]\d+)\}",
        lambda found: format_datetime(modified + timedelta(seconds=int(found[1])), usegmt=True),
        value,
    )


CONDITIONS: list[tuple[dict[str, str], int]] = [
    ({"if-none-match": "{etag}"}, 304),
    ({"if-none-match": "W/{etag}"}, 304),
    ({"if-none-match": '"other", W/"x,y" ,{etag}'}, 304),
    ({"if-none-match": "*"}, 304),
    ({"if-none-match": '"other"'}, 200),
    ({"if-none-match": "unquoted"}, 200),
    ({"if-none-match": ""}, 200),
    ({"if-modified-since": date(0)}, 304),
    ({"if-modified-since": date(60)}, 304),
    ({"if-modified-since": date(-1)}, 200),
    ({"if-modified-since": "{date in 1994}"}, 304),
    ({"if-modified-since": "{date of asctime}"}, 304),
    ({"if-modified-since": "yesterday"}, 200),
    ({"if-modified-since": "Fri, 02 Jan 99999999999999999999 03:04:05 GMT"}, 200),
    ({"if-modified-since": "9" * 5000}, 200),
    # The tag decides, whatever the date says.
    ({"if-none-match": '"other"', "if-modified-since": date(60)}, 200),
    ({"if-none-match": "{etag}", "if-modified-since": date(-60)}, 304),
    ({"if-match": "{etag}"}, 200),
    ({"if-match": '"other", {etag}'}, 200),
    ({"if-match": "*"}, 200),
    ({"if-match": '"other"'}, 412),
    ({"if-match": "W/{etag}"}, 412),
    ({"if-match": ""}, 412),
    ({"if-unmodified-since": date(0)}, 200),
    ({"if-unmodified-since": date(-1)}, 412),
    ({"if-unmodified-since": "yesterday"}, 200),
    ({"if-match": "{etag}", "if-unmodified-since": date(-60)}, 200),
    ({"if-match": '"other"', "if-unmodified-since": date(60)}, 412),
    # 412 comes before 304, both before the range.
    ({"if-match": '"other"', "if-none-match": "{etag}"}, 412),
    ({"if-match": "{etag}", "if-none-match": "{etag}"}, 304),
    ({"if-none-match": "{etag}", "range": "bytes=0-1"}, 304),
    ({"if-none-match": "{etag}", "range": "bytes=5000-"}, 304),
    ({"if-match": "{etag}", "range": "bytes=0-1"}, 206),
    ({"if-match": '"other"', "range": "bytes=5000-"}, 412),
    ({"range": "bytes=0-1", "if-range": "{etag}"}, 206),
    ({"range": "bytes=0-1", "if-range": "W/{etag}"}, 200),
    ({"range": "bytes=0-1", "if-range": '"other"'}, 200),
    ({"range": "bytes=0-1", "if-range": "{etag}, {etag}"}, 200),
    ({"range": "bytes=0-1", "if-range": date(0)}, 206),
    ({"range": "bytes=0-1", "if-range": date(1)}, 200),
    ({"range": "bytes=0-1", "if-range": date(-1)}, 200),
    ({"range": "bytes=0-1", "if-range": "yesterday"}, 200),
    ({"range": "bytes=5000-", "if-range": '"other"'}, 200),
    ({"range": "bytes=5000-", "if-range": "{etag}"}, 416),
    ({"if-range": "{etag}"}, 200),
]


@pytest.mark.parametrize(("headers", "status"), CONDITIONS)
def test_conditions(
    client: TestClient, validators: tuple[str, str], headers: dict[str, str], status: int
) -> None:
    modified = parsedate_to_datetime(validators[1])
    headers = {
        name: dated(value, modified).replace("{etag}", validators[0])
        for name, value in headers.items()
    }
    answer = client.get("/chunk", headers=headers)
    assert answer.status_code == status
    assert (answer.headers["etag"], answer.headers["last-modified"]) == validators
    if status == 304:
        assert answer.content == b""
        assert "content-type" not in answer.headers and "content-length" not in answer.headers
    elif status == 412:
        assert answer.json()["detail"]
    elif status == 200:
        assert answer.content == CONTENT
    headers.pop("range", None)
    head = client.head("/chunk", headers=headers)
    assert head.status_code == (200 if status in {206, 416} else status)
    assert head.content == b""


def test_several_lines_of_tags(client: TestClient, validators: tuple[str, str]) -> None:
    headers = [("if-none-match", '"other"'), ("if-none-match", validators[0])]
    assert client.get("/chunk", headers=headers).status_code == 304


# Streaming


def get(path: str = "/") -> Request:
    return Request({"type": "http", "method": "GET", "path": path, "headers": []})


async def connected() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def test_small_bodies_are_one_message(root: Path) -> None:
    answer = await ResultFile.open(DiskFolder(root), "chunk", get())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await answer(get().scope, connected, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["body"] == CONTENT and not sent[1].get("more_body")


async def test_large_bodies_come_in_chunks(root: Path) -> None:
    answer = await ResultFile.open(DiskFolder(root), "large.nc", get())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await answer(get().scope, connected, send)
    assert [len(message["body"]) for message in sent[1:]] == [CHUNK_SIZE, CHUNK_SIZE, 12345, 0]
    assert [message["more_body"] for message in sent[1:]] == [True, True, True, False]


async def test_the_opened_file_is_sent_whatever_becomes_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "results.nc"
    file.write_bytes(LARGE)
    answer = await ResultFile.open(DiskFolder(tmp_path), "results.nc", get())
    (tmp_path / "new").write_bytes(b"another")
    (tmp_path / "new").rename(file)
    sent = bytearray()

    async def send(message: Any) -> None:
        sent.extend(message.get("body", b""))

    await answer(get().scope, connected, send)
    assert sent == LARGE


async def test_bytes_appended_meanwhile_are_not_sent(tmp_path: Path) -> None:
    file = tmp_path / "results.nc"
    file.write_bytes(LARGE)
    answer = await ResultFile.open(DiskFolder(tmp_path), "results.nc", get())
    with file.open("ab") as growing:
        growing.write(b"more")
    sent = bytearray()

    async def send(message: Any) -> None:
        sent.extend(message.get("body", b""))

    await answer(get().scope, connected, send)
    assert sent == LARGE


async def test_a_file_that_becomes_shorter_breaks_the_response(tmp_path: Path) -> None:
    file = tmp_path / "results.nc"
    file.write_bytes(LARGE)
    answer = await ResultFile.open(DiskFolder(tmp_path), "results.nc", get())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        os.truncate(file, CHUNK_SIZE + 1)

    assert len(descriptors_of(tmp_path)) == 1
    with pytest.raises(ResultsUnavailable, match="became shorter"):
        await asyncio.wait_for(answer(get().scope, connected, send), 5)
    assert sent[-1].get("more_body", True), "never looks complete"
    assert descriptors_of(tmp_path) == []


async def test_a_client_that_leaves_stops_the_reading(root: Path) -> None:
    answer = await ResultFile.open(DiskFolder(root), "large.nc", get())
    left = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            left.set()
            await asyncio.sleep(0)

    assert len(descriptors_of(root)) == 1
    await answer(get().scope, receive, send)
    assert len(sent) == 2, "the start and one chunk"
    assert descriptors_of(root) == []


async def test_a_server_that_refuses_to_send_stops_the_reading(root: Path) -> None:
    answer = await ResultFile.open(DiskFolder(root), "large.nc", get())
    assert len(descriptors_of(root)) == 1

    async def send(message: Any) -> None:
        raise OSError("the client is gone")

    await answer(get().scope, connected, send)
    assert descriptors_of(root) == []


async def test_a_cancelled_response_closes_its_file(root: Path) -> None:
    answer = await ResultFile.open(DiskFolder(root), "large.nc", get())
    assert len(descriptors_of(root)) == 1
    started = asyncio.Event()

    async def send(message: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(answer(get().scope, connected, send))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert descriptors_of(root) == []


def test_answers_leave_no_descriptor_open(disk_client: TestClient, root: Path) -> None:
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


async def test_the_cost_does_not_grow_with_the_offset(tmp_path: Path) -> None:
    """A sparse file of 1 TiB: reading up to the end would take minutes."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek((1 << 40) - 4)
        file.write(b"last")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answer = await ResultFile.open(DiskFolder(tmp_path), "sparse", Request(scope, receive))
        await answer(scope, receive, send)

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        start = time.perf_counter()
        answer = await client.get("/", headers={"range": "bytes=-4"})
        assert answer.content == b"last"
        assert answer.headers["content-range"] == f"bytes {2**40 - 4}-{2**40 - 1}/{2**40}"
        assert time.perf_counter() - start < 1


def descriptors_of(root: Path) -> list[str]:
    """Name what this process has open in a folder; whatever else it has is not for these tests."""
    gc.collect()
    found = []
    for descriptor in os.listdir("/dev/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/dev/fd/{descriptor}"))
    return [path for path in found if path.startswith(f"{root}/")]
