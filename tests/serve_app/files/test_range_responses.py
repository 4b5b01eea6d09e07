"""Responses with ranges of files."""

import email.policy
from email.parser import BytesParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serve_app.files.serving import CHUNK_SIZE, SMALL
from tests.serve_app.files.conftest import CONTENT, LARGE


def test_ranges_of_other_methods_are_ignored(client: TestClient) -> None:
    response = client.post("/chunk", headers={"range": "bytes=0-1"})
    assert (response.status_code, response.content) == (200, CONTENT)


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
def test_one_range(client: TestClient, header: str, first: int, last: int) -> None:
    response = client.get("/chunk", headers={"range": header})
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {first}-{last}/1000"
    assert response.headers["content-length"] == str(last - first + 1)
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.content == CONTENT[first : last + 1]


def test_a_range_across_chunks(client: TestClient) -> None:
    start = CHUNK_SIZE - 10
    response = client.get("/large.nc", headers={"range": f"bytes={start}-"})
    assert response.content == LARGE[start:]
    response = client.get("/large.nc", headers={"range": f"bytes={start}-{start + SMALL}"})
    assert response.content == LARGE[start : start + SMALL + 1]


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=-0", f"bytes={'9' * 5000}-,5000-6000"])
def test_unsatisfiable_ranges(client: TestClient, header: str) -> None:
    response = client.get("/chunk", headers={"range": header})
    assert response.status_code == 416
    assert response.headers["content-range"] == "bytes */1000"
    assert response.headers["content-length"] == str(len(response.content))
    assert "1000 bytes" in response.json()["detail"]


@pytest.mark.parametrize("header", ["bytes=-", "bytes=2-1", "items=0-1", "bytes=x", "", "bytes"])
def test_malformed_headers_are_ignored(client: TestClient, header: str) -> None:
    response = client.get("/chunk", headers={"range": header})
    assert (response.status_code, response.content) == (200, CONTENT)


def test_two_range_headers_are_ignored(client: TestClient) -> None:
    headers = [("range", "bytes=0-1"), ("range", "bytes=3-4")]
    assert client.get("/chunk", headers=headers).status_code == 200


@pytest.mark.parametrize(("name", "content"), [("chunk", CONTENT), ("large.nc", LARGE)])
def test_several_ranges(client: TestClient, name: str, content: bytes) -> None:
    size = len(content)
    header = f"bytes={size // 2}-, 0-9, {size}-, 20-29"
    response = client.get(f"/{name}", headers={"range": header})
    assert response.status_code == 206
    assert response.headers["content-length"] == str(len(response.content))
    assert "content-range" not in response.headers
    media_type = client.head(f"/{name}").headers["content-type"]
    assert byteranges(response, media_type) == [
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
def test_ranges_match_a_simple_model(client: TestClient, header: str) -> None:
    response = client.get("/chunk", headers={"range": header})
    selected = model(header, len(CONTENT))
    if selected is None:
        assert (response.status_code, response.content) == (200, CONTENT)
    elif not selected:
        assert response.status_code == 416
    else:
        assert response.status_code == 206
        if "content-range" in response.headers:
            first = int(response.headers["content-range"].split()[1].split("-")[0])
            parts = [(first, response.content)]
        else:
            parts = byteranges(response, "application/octet-stream")
            assert len(parts) > 1
        sent = {first + i: byte for first, part in parts for i, byte in enumerate(part)}
        assert sent == {position: CONTENT[position] for position in selected}
        assert sum(len(part) for _, part in parts) == len(selected)


def model(header: str, size: int) -> set[int] | None:
    """Return the positions that a Range header selects; None if it is ignored."""
    unit, equals, rest = header.partition("=")
    specs = [spec.strip(" \t") for spec in rest.split(",") if spec.strip(" \t")]
    if unit.lower() != "bytes" or not equals or not specs:
        return None
    selected: set[int] = set()
    for spec in specs:
        first, dash, last = spec.partition("-")
        if not dash or not (first or last) or not set(first + last) <= set("0123456789"):
            return None
        if first and last and int(last) < int(first):
            return None
        if first:
            selected |= {i for i in range(size) if int(first) <= i <= int(last or size)}
        else:
            selected |= {i for i in range(size) if i >= size - int(last)}
    return selected


def byteranges(response: Any, media_type: str) -> list[tuple[int, bytes]]:
    """Return the parts of a multipart response; checks that a mail parser agrees."""
    kind, _, boundary = response.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    body = response.content
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
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    mail = BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    assert mail.is_multipart() and not mail.defects
    assert [part["Content-Range"].split()[0] for part in mail.iter_parts()] == ["bytes"] * len(
        parts
    )
    return parts
